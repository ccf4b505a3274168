use super::*;

fn pages(from: i64, to: impl Into<Option<i64>>) -> Pages {
    Pages {
        from,
        to: to.into(),
    }
}

fn heap(done: &[Pages]) -> Heap {
    let mut heap = Heap {
        relation: 7,
        file: 70,
        done: Vec::new(),
    };
    for pages in done {
        heap.add(*pages);
    }
    heap
}

#[test]
fn pages_join_in_any_order() {
    let one = heap(&[pages(20, 30), pages(0, 10), pages(40, None)]);
    assert_eq!(one.done, [pages(0, 10), pages(20, 30), pages(40, None)]);
    assert!(!one.is_complete());
    let two = heap(&[pages(20, None), pages(10, 20), pages(0, 10)]);
    assert!(two.is_complete());
    assert!(heap(&[pages(0, None), pages(5, 9)]).is_complete());
    assert_eq!(heap(&[pages(0, 9), pages(3, 5)]).done, [pages(0, 9)]);
}

#[test]
fn what_is_left_is_the_other_pages_and_newer_rows() {
    let table = Table {
        relation: 1,
        heaps: vec![heap(&[pages(0, 4), pages(8, None)]), Heap::default()],
    };
    let rest = table.rest((5 << 32) + 100);
    assert_eq!(
        rest.as_deref(),
        Some(
            "NOT (CASE tableoid::bigint WHEN 7 THEN (SELECT pg_catalog.pg_relation_filenode(7::regclass)) = 70 AND \
             (ctid >= '(0,0)'::tid AND ctid < '(4,0)'::tid OR ctid >= '(8,0)'::tid) ELSE false END AND (100 - xmin::text::bigint + 4294967296) % 4294967296 BETWEEN 1 AND 2147483647)"
        )
    );
    let nothing = Table {
        relation: 1,
        heaps: vec![Heap::default()],
    };
    assert_eq!(nothing.rest(100), None);
}

#[tokio::test]
async fn only_what_is_durable_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = Recorder::new(&folder.path().into(), Lsn(90));
    let table = Table {
        relation: 7,
        heaps: vec![heap(&[])],
    };
    recorder.plan([("public.t".to_owned(), table)].into());
    recorder.saw(33);
    let feedback = Feedback::default();
    let first = recorder.sent("public.t".into(), 7, pages(0, 4));
    let second = recorder.sent("public.t".into(), 7, pages(4, None));
    assert_eq!((first, second), (1, 2));
    let keeper = tokio::spawn(recorder.clone().keep(feedback.clone()));
    feedback.confirm_mark(first);
    let written = || {
        read(&folder.path().into())
            .filter(|extent| !extent.tables["public.t"].heaps[0].done.is_empty())
    };
    let extent = loop {
        match written() {
            Some(extent) => break extent,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!((extent.consistent_point, extent.xmin), (Lsn(90), 33));
    assert_eq!(extent.tables["public.t"].heaps[0].done, [pages(0, 4)]);
    feedback.confirm_mark(second);
    recorder.whole();
    keeper.await.expect("ends");
    let extent = read(&folder.path().into()).expect("written");
    assert!(extent.tables["public.t"].is_complete());
    std::fs::write(folder.path().join(NAME), "{").expect("written");
    assert_eq!(
        read(&folder.path().into()),
        None,
        "a damaged one counts for nothing"
    );
}
