//! Partitions are attached and detached.

use lockstep_e2e::child::PATIENCE;
use lockstep_kit::Component::{
    Kafka as NeedsKafka, OpenSearch as NeedsOpenSearch, Postgres as NeedsPostgres,
    Redis as NeedsRedis,
};
use lockstep_kit::require;

use super::Lab;

const TABLE: &str = "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
    CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
    INSERT INTO p VALUES (1, 'a'), (11, 'b')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_their_root_rows_that_come_and_go_with_a_partition_are_told() {
    for major in [14, 18] {
        require!(
            NeedsPostgres(major),
            NeedsRedis,
            NeedsKafka,
            NeedsOpenSearch
        );
        let lab = Lab::new(major, TABLE, &["public.p"], "").await;
        let mut pipeline = lab.setup.start_ready().await;
        lab.database
            .execute("CREATE TABLE gone PARTITION OF p FOR VALUES FROM (90) TO (99)")
            .await;
        // Created as a partition: all its rows are in the stream, and there is nothing to tell.
        for sql in [
            "CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30)",
            "INSERT INTO p VALUES (21, 'c')",
            "CREATE TABLE p4 (id int PRIMARY KEY, v text)",
            "INSERT INTO p4 VALUES (31, 'before')",
            "ALTER TABLE p ATTACH PARTITION p4 FOR VALUES FROM (30) TO (40)",
            "INSERT INTO p VALUES (32, 'after'); UPDATE p SET id = 2 WHERE id = 21",
        ] {
            lab.database.execute(sql).await;
        }
        let told = lab
            .notice(
                &mut pipeline,
                &[
                    "table public.p",
                    "got the partition p4",
                    "lockstep snapshot",
                ],
            )
            .await;
        assert_eq!(told["gap"], false, "{told}");
        let notices = pipeline.status().await["sources"]["shop"]["notices"].to_string();
        assert!(!notices.contains("partition p3"), "{notices}");
        pipeline.wait_ready().await;
        lab.load(
            &mut pipeline,
            "public.p",
            &["--where", "id >= 30 AND id < 40"],
        )
        .await;
        for sql in ["DELETE FROM p2", "ALTER TABLE p DETACH PARTITION p2"] {
            lab.database.execute(sql).await;
        }
        // PostgreSQL 14 goes on sending these as rows of the root, until the connection is made anew.
        if major > 14 {
            let not_ours = "INSERT INTO p2 VALUES (12, 'not ours')";
            lab.database.execute(not_ours).await;
        }
        lab.notice(
            &mut pipeline,
            &["lost the partition p2", "detached", "no DELETE"],
        )
        .await;
        lab.database.execute("DROP TABLE gone").await;
        lab.notice(&mut pipeline, &["lost the partition gone", "dropped"])
            .await;
        lab.settle(&mut pipeline).await;
        assert!(pipeline.terminate(PATIENCE).await.success());
        lab.assert_equal(&["public.p"]).await;
        come_and_go_unseen(&lab).await;
    }
}

/// While lockstep does not run.
async fn come_and_go_unseen(lab: &Lab) {
    for sql in [
        "CREATE TABLE p5 (id int PRIMARY KEY, v text); INSERT INTO p5 VALUES (41, 'before')",
        "ALTER TABLE p ATTACH PARTITION p5 FOR VALUES FROM (40) TO (50)",
        "ALTER TABLE p DETACH PARTITION p4",
    ] {
        lab.database.execute(sql).await;
    }
    let mut pipeline = lab.setup.start_ready().await;
    for told in [
        &["got the partition p5", "lockstep snapshot"],
        &["lost the partition p4", "detached"],
    ] {
        lab.notice(&mut pipeline, told).await;
    }
    assert!(pipeline.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_root_a_partition_is_a_table_that_comes_and_goes() {
    require!(NeedsPostgres(17), NeedsRedis, NeedsKafka, NeedsOpenSearch);
    let sql = format!("{TABLE}; CREATE PUBLICATION lockstep FOR TABLE p");
    let lab = Lab::new(17, &sql, &["public.p1", "public.p2", "public.*"], "").await;
    let mut pipeline = lab.setup.start_ready().await;
    lab.database
        .execute("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30); INSERT INTO p VALUES (21, 'c'), (2, 'd')")
        .await;
    lab.loads(&mut pipeline, "public.p3").await;
    // Detached, it has left the publication.
    lab.database
        .execute("ALTER TABLE p DETACH PARTITION p3; INSERT INTO p3 VALUES (22, 'missed')")
        .await;
    pipeline
        .wait_unready(&["table public.p3", "not in the publication"])
        .await;
    lab.database
        .execute("ALTER PUBLICATION lockstep ADD TABLE p3")
        .await;
    pipeline.wait_ready().await;
    lab.load(&mut pipeline, "public.p3", &[]).await;
    lab.settle(&mut pipeline).await;
    assert!(pipeline.terminate(PATIENCE).await.success());
    lab.assert_equal(&["public.p1", "public.p2", "public.p3"])
        .await;
}
