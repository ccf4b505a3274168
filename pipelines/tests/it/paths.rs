//! Several paths from a source to a sink, parts of nodes, several sources.

use lockstep_core::position::Lsn;

use crate::ends::{LogRow, Run, Server, Store, Witness, until};

#[tokio::test(start_paused = true)]
async fn an_input_takes_a_part_of_a_node() {
    let server = Server::new("part", "a", &["x", "y"]);
    let (x, all) = (Store::new("part-x"), Store::new("part-all"));
    server.state().batch_sizes = vec![4];
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"part\" }\n\
         sinks.x = { type = \"memory\", script = \"part-x\", inputs = [\"a:public.x\"] }\n\
         sinks.all = { type = \"memory\", script = \"part-all\", inputs = [\"a:*.*\"] }\n",
    )
    .await;
    for key in 0..10 {
        server.commit(&[LogRow { table: "x", key }, LogRow { table: "y", key }]);
    }
    // Nothing in these for `x`, which must not hold the position back.
    let end = server.fill("y", 5);
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(all.stream("a"), server.stream());
    let expected: Vec<_> = server
        .stream()
        .into_iter()
        .filter(|(_, row)| row.table == "x")
        .collect();
    assert_eq!(x.stream("a"), expected);
    assert_eq!(x.state().tables, ["public.x"]);
    assert_eq!(all.state().tables, ["public.x", "public.y"]);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn paths_merge_in_the_order_of_positions() {
    let (server, store) = (
        Server::new("merge", "a", &["x", "y", "z"]),
        Store::new("merge"),
    );
    let witness = Witness::new("merge");
    witness.state().drop_table = Some("z");
    server.state().batch_sizes = vec![7, 2, 1];
    // `y` comes by the transform, `x` straight, `z` both ways: dropped on one, so it comes by the other, and once.
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"merge\" }\n\
         transforms.w = { type = \"witness\", script = \"merge\", inputs = [\"a:public.y\", \"a:public.z\"] }\n\
         sinks.s = { type = \"memory\", script = \"merge\", inputs = [\"a:public.x\", \"w\", \"a:*.z\"] }\n",
    )
    .await;
    let mut end = Lsn(0);
    for key in 0..30 {
        let row = |table| LogRow { table, key };
        end = server
            .commit(&[row("x"), row("y"), row("x"), row("z"), row("y")][..1 + key as usize % 5]);
    }
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.stream("a"), server.stream());
    assert!(
        witness
            .state()
            .bound
            .iter()
            .all(|table| table != "public.x"),
        "not bound to what it does not get"
    );
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_comes_by_two_paths_is_sent_once() {
    let (server, store) = (Server::new("twice", "a", &["x"]), Store::new("twice"));
    Witness::new("twice");
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"twice\" }\n\
         transforms.w = { type = \"witness\", script = \"twice\", inputs = [\"a\"] }\n\
         sinks.s = { type = \"memory\", script = \"twice\", inputs = [\"w\", \"a\"] }\n",
    )
    .await;
    let end = server.fill("x", 20);
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.stream("a"), server.stream());
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn selectors_see_names_as_they_leave_a_node() {
    let (server, store) = (Server::new("renamed", "a", &["x"]), Store::new("renamed"));
    Witness::new("renamed").state().rename = Some("new");
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"renamed\" }\n\
         transforms.w = { type = \"witness\", script = \"renamed\", inputs = [\"a\"] }\n\
         sinks.s = { type = \"memory\", script = \"renamed\", inputs = [\"w:a.public.new\"] }\n",
    )
    .await;
    let end = server.fill("x", 3);
    until("confirmed", || server.state().confirmed == end).await;
    assert_eq!(store.stream("a").len(), 3);
    assert_eq!(store.state().tables, ["public.new"]);
    run.stop().await.expect("stops");
}

#[tokio::test(start_paused = true)]
async fn sources_share_transforms_and_sinks_and_keep_their_own_positions() {
    let (a, b) = (
        Server::new("share-a", "a", &["x"]),
        Server::new("share-b", "b", &["y"]),
    );
    let (both, only_b) = (Store::new("share-both"), Store::new("share-b"));
    let witness = Witness::new("share");
    let run = Run::start(
        "sources.a = { type = \"scripted\", script = \"share-a\" }\n\
         sources.b = { type = \"scripted\", script = \"share-b\" }\n\
         transforms.w = { type = \"witness\", script = \"share\", inputs = [\"a\", \"b\"] }\n\
         sinks.both = { type = \"memory\", script = \"share-both\", inputs = [\"w\"] }\n\
         sinks.b = { type = \"memory\", script = \"share-b\", inputs = [\"w:b.*.*\"] }\n",
    )
    .await;
    let (end_a, end_b) = (a.fill("x", 50), b.fill("y", 20));
    until("confirmed", || {
        a.state().confirmed == end_a && b.state().confirmed == end_b
    })
    .await;
    assert_eq!(
        (both.stream("a"), both.stream("b")),
        (a.stream(), b.stream())
    );
    assert_eq!(
        (only_b.stream("a"), only_b.stream("b")),
        (Vec::new(), b.stream())
    );
    assert_eq!(witness.state().seen.len(), 70);
    assert_eq!(run.running.status().transforms["w"].duplicates, 70);
    assert_eq!(run.running.visible("a", end_a).expect("a source").len(), 1);
    run.stop().await.expect("stops");
}
