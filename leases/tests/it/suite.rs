//! What every provider promises. Times are compared with nothing tighter than the promise: twice the time of a lease.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_core::ErrorKind;
use lockstep_kit::clock::Clock;
use lockstep_kit::{unique, wait_for};
use lockstep_leases::{Attempt, Candidate, Renewal, Token};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::child::Holder;
use crate::ground::{Ground, config};

/// Short, as a test waits for it, and whole, as Kubernetes has it.
const TTL: Duration = Duration::from_secs(2);

/// So long that nothing in a test happens because it has passed.
const LONG: Duration = Duration::from_secs(60);

/// Long enough for anything that takes no more than answers.
const SOON: Duration = Duration::from_secs(15);

/// The suite for a [`Ground`], and the components that its tests need.
macro_rules! suite {
    (@ $ground:ty, $require:ident $needs:tt: $($test:ident),+) => {
        $(suite!(@@ $ground, $require $needs $test);)+
    };
    (@@ $ground:ty, $require:ident [$($needs:expr)?] $test:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            $(lockstep_kit::$require!($needs);)?
            crate::suite::$test::<$ground>().await;
        }
    };
    ($ground:ty $(, $needs:expr)?) => {
        suite!(@ $ground, require [$($needs)?]:
            one_at_a_time,
            refused_and_then_handed_over_at_once,
            a_lease_that_is_let_go_is_no_more_held,
            a_killed_holder_is_followed,
            a_frozen_holder_is_followed_and_finds_out,
            a_holder_that_is_cut_off_knows_it_before_another_has_the_lease,
            an_answer_that_is_lost_is_found_again,
            an_attempt_that_is_given_up_leaves_nothing_behind,
            a_waiter_that_is_given_up_leaves_nothing_behind,
            an_old_holder_changes_nothing,
            wrong_clocks_make_no_difference);
        suite!(@ $ground, require_own [$($needs)?]:
            a_lease_outlives_a_restart_of_the_server);
    };
}

/// Something that is written to: the greatest token it has seen, and what is there.
#[derive(Default)]
struct Resource {
    greatest: Option<Token>,
    value: u64,
    inside: u32,
}

pub async fn one_at_a_time<G: Ground>() {
    take_turns::<G>(5, 6).await;
}

/// Contenders add one to a value that nothing else guards.
pub async fn take_turns<G: Ground>(count: u64, rounds: u64) {
    let (ground, name) = (Arc::new(G::shared().await), lease_name("crowd"));
    let resource = Arc::new(Mutex::new(Resource::default()));
    let mut contenders = JoinSet::new();
    for _ in 0..count {
        let (ground, name, resource) = (ground.clone(), name.clone(), resource.clone());
        contenders.spawn(async move {
            let leases = ground.leases(LONG);
            for _ in 0..rounds {
                let held = leases.acquire(&name, "one").await.expect("held");
                let before = {
                    let mut resource = resource.lock().expect("no panic");
                    resource.inside += 1;
                    assert_eq!(resource.inside, 1, "two hold it at the same time");
                    assert!(
                        resource.greatest < Some(held.token()),
                        "{} after {:?}",
                        held.token(),
                        resource.greatest
                    );
                    resource.greatest = Some(held.token());
                    resource.value
                };
                // Others have every chance to come in between.
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                {
                    let mut resource = resource.lock().expect("no panic");
                    resource.value = before + 1;
                    resource.inside -= 1;
                }
                assert!(held.is_valid_now());
                held.release().await.expect("let go");
            }
            let figures = leases.figures();
            assert_eq!((figures.acquired, figures.lost), (rounds, 0));
            assert_eq!(figures.success_rate(), Some(1.0));
            assert!(figures.average_wait().is_some_and(|wait| wait < LONG));
        });
    }
    while let Some(ended) = contenders.join_next().await {
        ended.expect("no panic");
    }
    let value = resource.lock().expect("no panic").value;
    assert_eq!(value, count * rounds);
}

/// One who waits has a lease of a minute long before a third of its time has passed.
pub async fn refused_and_then_handed_over_at_once<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("hand"));
    let (one, other) = (ground.leases(LONG), ground.leases(LONG));
    let held = one.acquire(&name, "one").await.expect("held");
    let tried = other.try_acquire(&name, "other").await;
    assert!(tried.expect("an answer").is_none());
    let patience = Duration::from_millis(200);
    let waited = other.acquire_within(&name, "other", patience).await;
    assert!(waited.expect("an answer").is_none());
    let figures = other.figures();
    assert_eq!((figures.refused, figures.timed_out), (1, 1));
    assert_eq!(figures.success_rate(), Some(0.0));

    let mut acquiring = Box::pin(other.acquire(&name, "other"));
    let early = timeout(Duration::from_millis(500), &mut acquiring).await;
    assert!(early.is_err(), "two hold it");
    let first = held.token();
    held.release().await.expect("let go");
    let next = timeout(SOON, acquiring).await;
    let next = next.expect("handed over at once").expect("held");
    assert!(next.token() > first);
    // The same one again, and another name beside it.
    next.release().await.expect("let go");
    let again = other.acquire(&name, "other").await.expect("held");
    assert!(again.token() > first);
    let beside = other.try_acquire(&lease_name("hand"), "other").await;
    assert!(beside.expect("an answer").is_some());
}

pub async fn a_lease_that_is_let_go_is_no_more_held<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("gone"));
    let leases = ground.leases(LONG);
    let held = leases.acquire(&name, "one").await.expect("held");
    let right = held.right();
    assert!(right.is_valid_now());
    held.release().await.expect("let go");
    assert!(!right.is_valid_now());
    timeout(SOON, right.lost()).await.expect("over");
    // As well when it is only dropped.
    let held = leases.acquire(&name, "one").await.expect("held");
    let right = held.right();
    drop(held);
    timeout(SOON, right.lost()).await.expect("over");
    let next = timeout(SOON, leases.acquire(&name, "two")).await;
    let next = next.expect("let go in the background").expect("held");
    assert!(next.token() > right.token());
    assert_eq!(leases.figures().lost, 0);
}

pub async fn a_killed_holder_is_followed<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("kill"));
    let mut holder = Holder::start(&ground.config(&ground.address(), TTL), &name, &[]);
    let token = holder.token().await;
    let leases = ground.leases(TTL);
    let mut acquiring = Box::pin(leases.acquire(&name, "next"));
    let early = timeout(2 * TTL, &mut acquiring).await;
    assert!(early.is_err(), "a living holder was followed");
    let killed = Instant::now();
    holder.kill();
    let next = acquiring.await.expect("held");
    assert_followed(killed);
    assert!(next.token() > token);
}

pub async fn a_frozen_holder_is_followed_and_finds_out<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("freeze"));
    let mut holder = Holder::start(&ground.config(&ground.address(), TTL), &name, &[]);
    let token = holder.token().await;
    holder.ask().await;
    assert!(holder.thinks_it_is_valid().await);
    let leases = ground.leases(TTL);
    let mut acquiring = Box::pin(leases.acquire(&name, "next"));
    // It waits before the holder is frozen.
    let early = timeout(TTL / 4, &mut acquiring).await;
    assert!(early.is_err(), "a living holder was followed");
    let frozen = Instant::now();
    holder.freeze(true);
    let next = acquiring.await.expect("held");
    assert_followed(frozen);
    assert!(next.token() > token);
    // The question is there when it wakes up.
    holder.ask().await;
    holder.freeze(false);
    assert!(!holder.thinks_it_is_valid().await, "the zombie would write");
    // And it takes nothing away.
    assert!(next.is_valid_now());
    let kept = timeout(TTL * 3 / 2, next.lost()).await;
    assert!(kept.is_err(), "the zombie took the lease away");
}

pub async fn a_holder_that_is_cut_off_knows_it_before_another_has_the_lease<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("cut"));
    let proxy = ground.proxy().await;
    let cut_off = ground.leases_through(&proxy, TTL);
    let held = cut_off.acquire(&name, "cut off").await.expect("held");
    let leases = ground.leases(TTL);
    let mut acquiring = Box::pin(leases.acquire(&name, "next"));
    let early = timeout(TTL / 4, &mut acquiring).await;
    assert!(early.is_err(), "two hold it");
    let began = Instant::now();
    proxy.pause(true);
    let next = acquiring.await.expect("held");
    assert!(!held.is_valid_now(), "two hold it");
    assert_followed(began);
    timeout(SOON, held.lost()).await.expect("lost");
    wait_for(SOON, "the loss to be counted", async || {
        cut_off.figures().lost == 1
    })
    .await;
    // What was held back arrives now.
    proxy.pause(false);
    drop(held);
    let kept = timeout(TTL * 3 / 2, next.lost()).await;
    assert!(kept.is_err(), "the old holder took the lease away");
}

/// The server has given the lease, or the place in its queue, and the answer never comes.
pub async fn an_answer_that_is_lost_is_found_again<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("answer"));
    let proxy = ground.proxy().await;
    let leases = ground.leases_through(&proxy, LONG);
    // The server's side comes first: what the table, or the directory, is made for.
    let other = lease_name("answer");
    let made = leases.acquire(&other, "one").await.expect("held");
    made.release().await.expect("let go");

    proxy.latency(Duration::from_millis(400));
    let acquiring = {
        let (leases, name) = (leases.clone(), name.clone());
        tokio::spawn(async move { leases.acquire(&name, "one").await })
    };
    wait_for(SOON, "the server to have given it", async || {
        ground.is_taken(&name).await
    })
    .await;
    proxy.cut();
    proxy.latency(Duration::ZERO);
    let held = timeout(SOON, acquiring).await.expect("found again");
    let held = held.expect("no panic").expect("held");
    assert!(held.is_valid_now());
    held.release().await.expect("let go");
    let next = ground.leases(LONG).try_acquire(&name, "next").await;
    assert!(
        next.expect("an answer").is_some(),
        "something was left behind"
    );
}

/// Attempts that are dropped at one place or another of their way.
pub async fn an_attempt_that_is_given_up_leaves_nothing_behind<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("drop"));
    let leases = ground.leases(TTL);
    let mut given_up = 0;
    for micros in [0, 50, 200, 500, 1000, 2000, 3000, 5000, 8000, 12000] {
        let acquiring = leases.acquire(&name, "hasty");
        match timeout(Duration::from_micros(micros), acquiring).await {
            Ok(held) => held.expect("held").release().await.expect("let go"),
            Err(_) => given_up += 1,
        }
    }
    let last = Instant::now();
    assert_eq!(leases.figures().given_up, given_up);
    let held = leases.acquire(&name, "next").await.expect("held");
    assert_followed(last);
    assert!(held.is_valid_now());
}

pub async fn a_waiter_that_is_given_up_leaves_nothing_behind<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("leave"));
    let leases = ground.leases(LONG);
    let held = leases.acquire(&name, "one").await.expect("held");
    let patience = Duration::from_millis(700);
    let waited = leases.acquire_within(&name, "hasty", patience).await;
    assert!(waited.expect("an answer").is_none());
    let mut acquiring = Box::pin(leases.acquire(&name, "patient"));
    let early = timeout(patience, &mut acquiring).await;
    assert!(early.is_err(), "two hold it");
    held.release().await.expect("let go");
    let next = timeout(SOON, acquiring).await.expect("handed over at once");
    assert!(next.expect("held").is_valid_now());
}

/// One that does not renew, and asks to when another has the lease.
pub async fn an_old_holder_changes_nothing<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("old"));
    let provider = config(ground.config(&ground.address(), TTL)).provider();
    let provider = provider.expect("a provider");
    let mut old = provider.candidate(&name, "old").expect("a candidate");
    let first = take(&mut *old, TTL).await;
    let mut new = provider.candidate(&name, "new").expect("a candidate");
    let second = take(&mut *new, 2 * TTL).await;
    assert!(second > first);
    assert_eq!(renew(&mut *old).await, Renewal::Lost);
    old.release().await.expect("an answer");
    let renewed = renew(&mut *new).await;
    assert!(matches!(renewed, Renewal::Prolonged(_)), "{renewed:?}");
    new.release().await.expect("let go");
    assert_eq!(renew(&mut *new).await, Renewal::Lost);
}

/// A renewal that arrives when the time is over, although nobody else has come. Not for Kubernetes, whose server cannot tell.
pub async fn a_lease_that_has_run_out_is_not_brought_back<G: Ground>() {
    let (ground, name) = (G::shared().await, lease_name("late"));
    let provider = config(ground.config(&ground.address(), TTL)).provider();
    let provider = provider.expect("a provider");
    let mut late = provider.candidate(&name, "late").expect("a candidate");
    take(&mut *late, TTL).await;
    assert!(ground.is_taken(&name).await);
    wait_for(2 * TTL + SOON, "the lease to run out", async || {
        !ground.is_taken(&name).await
    })
    .await;
    assert_eq!(renew(&mut *late).await, Renewal::Lost);
    assert!(!ground.is_taken(&name).await);
}

/// The answer: a connection that the server has closed is made anew by the next call.
async fn renew(candidate: &mut dyn Candidate) -> Renewal {
    for _ in 0..3 {
        match candidate.renew().await {
            Ok(renewal) => return renewal,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    panic!("no answer")
}

async fn take(candidate: &mut dyn Candidate, patience: Duration) -> Token {
    let end = Instant::now() + patience + SOON;
    loop {
        match candidate.attempt().await.expect("an answer") {
            Attempt::Taken { token, .. } => return token,
            Attempt::Refused { .. } => {
                let left = end.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "it does not run out");
                candidate.wait(left.min(TTL / 4)).await.expect("waited");
            }
        }
    }
}

/// A day ahead while it waits, a day behind while it holds.
pub async fn wrong_clocks_make_no_difference<G: Ground>() {
    const DAY: i64 = 86_400_000;
    let (ground, name) = (G::shared().await, lease_name("clock"));
    let leases = ground.leases(TTL);
    let held = leases.acquire(&name, "right").await.expect("held");
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Clock::new(folder.path()).expect("a clock");
    clock.set(DAY).expect("set");
    let section = ground.config(&ground.address(), TTL);
    let mut wrong = Holder::start(&section, &name, &clock.variables());
    let kept = timeout(2 * TTL, held.lost()).await;
    assert!(kept.is_err(), "one whose clock is ahead took it");
    let first = held.token();
    held.release().await.expect("let go");
    let second = timeout(SOON, wrong.token()).await.expect("handed over");
    assert!(second > first);
    clock.set(-DAY).expect("set");
    let waited = leases.acquire_within(&name, "right", 2 * TTL).await;
    assert!(
        waited.expect("an answer").is_none(),
        "one whose clock is behind lost it"
    );
    wrong.ask().await;
    assert!(wrong.thinks_it_is_valid().await);
}

pub async fn a_lease_outlives_a_restart_of_the_server<G: Ground>() {
    let ttl = Duration::from_secs(20);
    let (ground, name) = (G::own().await, lease_name("restart"));
    let leases = ground.leases(ttl);
    let held = leases.acquire(&name, "one").await.expect("held");
    ground.restart().await;
    let (left, since) = (held.right().left().expect("still held"), Instant::now());
    // Only a renewal makes it more than what it was, less the time that has passed.
    wait_for(ttl, "a renewal", async || {
        let now = held.right().left().expect("still held");
        now + since.elapsed() > left + Duration::from_secs(1)
    })
    .await;
    let other = ground.leases(ttl);
    let tried = other.try_acquire(&name, "other").await;
    assert!(tried.expect("an answer").is_none());
    let first = held.token();
    held.release().await.expect("let go");
    ground.restart().await;
    let next = other.acquire(&name, "other").await.expect("held");
    assert!(next.token() > first, "the server forgot a token");
}

fn assert_followed(since: Instant) {
    let waited = since.elapsed();
    assert!(waited <= 2 * TTL, "followed after {waited:?}");
}

/// As Kubernetes has names.
fn lease_name(what: &str) -> String {
    unique(what).replace('_', "-")
}
