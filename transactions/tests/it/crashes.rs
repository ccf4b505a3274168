//! The coordinator dies, at every place of its way, and the next one of its name takes over.

use std::os::unix::process::ExitStatusExt;

use lockstep_kit::Component::Postgres as Needs;
use lockstep_transactions::coordinator::Point;

use crate::buyer::{self, Place, dies};
use crate::support::{Form, Shop, both};

/// A purchase whose coordinator dies there. Then this many branches are prepared in the two databases; and when another
/// coordinator has taken over, the purchase is in both or in none.
async fn row(form: Form, die: Place, wait: Option<Place>, prepared: [usize; 2], commits: bool) {
    let shop = Shop::open().await;
    dies(&shop, form, die, wait).await;
    let name = format!("{form:?} {die:?}");
    // A server that has not noticed yet may still work at a statement.
    if die.0 != Point::Committing {
        assert_eq!(shop.prepared().await, prepared, "{name}");
    }
    let next = shop.coordinator(form).open().await.expect("takes over");
    let expected = if commits { both("1") } else { both("") };
    assert_eq!(shop.settle().await, expected, "{name}");
    let measures = next.measures();
    let recovered = measures.recovered_committed + measures.recovered_rolled_back;
    assert_eq!(recovered, prepared.iter().sum::<usize>() as u64, "{name}");
    assert_eq!(
        measures.recovered_committed > 0,
        commits && prepared != [0, 0]
    );
    assert_eq!(measures.heuristic, 0, "{name}");
    // And goes on as if nothing had been.
    let bought = crate::support::buy(&next, 2).await.expect("buys");
    assert!(bought.is_everywhere());
}

macro_rules! needs {
    () => {
        lockstep_kit::require!(Needs(15), Needs(17));
    };
}

#[tokio::test]
async fn row_1_before_anything_is_prepared() {
    needs!();
    for form in Form::BOTH {
        row(form, (Point::Committing, form.log()), None, [0, 0], false).await;
    }
}

#[tokio::test]
async fn row_2_after_one_of_two_is_prepared() {
    needs!();
    let (here, there) = ((Point::Prepared, "orders"), (Point::Preparing, "inventory"));
    row(Form::Full, here, Some(there), [1, 0], false).await;
    row(
        Form::Marked,
        (Point::Prepared, "inventory"),
        None,
        [0, 1],
        false,
    )
    .await;
}

#[tokio::test]
async fn row_3_after_all_are_prepared() {
    needs!();
    for (form, prepared) in [(Form::Full, [1, 1]), (Form::Marked, [0, 1])] {
        for point in [Point::AllPrepared, Point::Deciding] {
            row(form, (point, form.log()), None, prepared, false).await;
        }
    }
}

#[tokio::test]
async fn row_4_after_the_decision() {
    needs!();
    for (form, prepared) in [(Form::Full, [1, 1]), (Form::Marked, [0, 1])] {
        row(form, (Point::Decided, form.log()), None, prepared, true).await;
    }
}

#[tokio::test]
async fn row_5_after_one_of_two_has_committed() {
    needs!();
    let (here, there) = ((Point::Ended, "orders"), (Point::Ending, "inventory"));
    row(Form::Full, here, Some(there), [0, 1], true).await;
}

#[tokio::test]
async fn row_6_after_one_of_two_was_rolled_back() {
    needs!();
    let shop = Shop::open().await;
    let (here, there) = ((Point::Ended, "orders"), (Point::Ending, "inventory"));
    let status = buyer::run(&shop, Form::Full, here, Some(there), true).await;
    assert_eq!(status.signal(), Some(9), "{status:?}");
    assert_eq!(shop.prepared().await, [0, 1]);
    let next = shop
        .coordinator(Form::Full)
        .open()
        .await
        .expect("takes over");
    assert_eq!(shop.settle().await, both(""));
    assert_eq!(next.measures().recovered_rolled_back, 1);
}

#[tokio::test]
async fn a_coordinator_that_may_live_keeps_its_branches() {
    needs!();
    let shop = Shop::open().await;
    dies(&shop, Form::Full, (Point::AllPrepared, "decisions"), None).await;
    // Of another name: it closes no epoch but its own.
    let direct = |database: &lockstep_kit::postgres::Database| {
        let config = database.url().parse().expect("a URL");
        lockstep_transactions::coordinator::Direct::new(config, tokio_postgres::NoTls)
    };
    let other = lockstep_transactions::coordinator::Coordinator::builder("another")
        .database("orders", direct(&shop.orders))
        .database("inventory", direct(&shop.inventory))
        .database("decisions", direct(&shop.decisions))
        .log("decisions")
        .open()
        .await
        .expect("opens");
    assert_eq!(shop.prepared().await, [1, 1]);
    assert_eq!(other.measures().recovered_rolled_back, 0);
    // When that epoch is closed, by whomever, anybody may.
    let close = "UPDATE lockstep.gtx_epoch SET closed = now() WHERE coordinator = 'shop'";
    shop.decisions.execute(close).await;
    drop(other);
    let next = shop.coordinator(Form::Full).open().await.expect("opens");
    assert_eq!(shop.settle().await, both(""));
    assert_eq!(next.measures().recovered_rolled_back, 2);
}
