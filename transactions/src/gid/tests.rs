use proptest::prelude::*;

use super::*;

fn parts(gid: &str) -> (String, String, String) {
    let branch = Branch::parse(gid);
    (
        branch.dialect().to_string(),
        branch.global().to_owned(),
        branch.qualifier().to_owned(),
    )
}

fn are(gid: &str, dialect: &str, global: &str, qualifier: &str) {
    let expected = (dialect.to_owned(), global.to_owned(), qualifier.to_owned());
    assert_eq!(parts(gid), expected, "{gid}");
}

#[test]
fn each_dialect_is_told_by_its_form() {
    // psycopg's own example of xid(42, "gtrid", "bqual"), and the one that pgjdbc's tests have.
    are("42_Z3RyaWQ=_YnF1YWw=", "xa", "42_Z3RyaWQ=", "YnF1YWw=");
    are("131077_AQ==_Ag==", "narayana", "131077_AQ==", "Ag==");
    are("201_AQ==_Ag==", "flink", "201_AQ==", "Ag==");
    are("-1_AQ==_", "xa", "-1_AQ==", "");
    are(
        "Rz4bLyQzFfVtXrCqvhZ9rJ-0102",
        "dtm",
        "Rz4bLyQzFfVtXrCqvhZ9rJ",
        "0102",
    );
    are("order-17", "plain", "order-17", "");
    let guid = "5b6c9e8e-2f0a-4c55-9d4e-1f2a3b4c5d6e";
    are(&format!("{guid}/4711"), "npgsql", guid, "4711");
    are("citus_0_4711_12_-3", "citus", "citus_0_4711_12", "-3");
    are("pg_gid_16394_781", "subscriber", "pg_gid_16394_781", "");
    let drawn = "_sa_0123456789abcdef0123456789abcdef";
    are(drawn, "sqlalchemy", drawn, "");
    are("order 17", "plain", "order 17", "");
}

#[test]
fn what_only_looks_like_a_form_stands_for_itself() {
    let thirty = "0123456789abcdef0123456789abcd";
    for gid in [
        "",
        "_",
        "__",
        "1__",
        "17_pay_load",
        "17_order_2",
        "17_load_0001",
        "+1_AQ==_Ag==",
        "01_AQ==_Ag==",
        "-0_AQ==_Ag==",
        "1_AQ=_Ag==",
        "x_AQ==_Ag==",
        "99999999999_AQ==_Ag==",
        "5b6c9e8e-2f0a-4c55-9d4e-1f2a3b4c5d6e/",
        "5b6c9e8e-2f0a-4c55-9d4e-1f2a3b4c5d6g/1",
        "5b6c9e8e02f0a-4c55-9d4e-1f2a3b4c5d6e/1",
        "order-1",
        "order-123",
        "Rz4bLyQzFfVtXrCqvhZ9rJ-1",
        "Rz4bLyQzFfVtXrCqvhZ9rJ-0123456789012345678901",
        "Rz4bLyQzFfVtXrCqvhZ9r0-01",
        "citus_1_2_3",
        "citus_1_2_3_x",
        "pg_gid_1_",
        &format!("_sa_{thirty}"),
    ] {
        let branch = Branch::parse(gid);
        assert_eq!(*branch.dialect(), Dialect::Plain, "{gid}: {branch:?}");
        assert_eq!(branch.global(), gid);
    }
    let long = "A".repeat(88);
    assert_eq!(
        parts(&format!("1_{long}_")).0,
        "plain",
        "more than 64 bytes"
    );
}

#[test]
fn managers_are_told_by_their_formats() {
    for (format, manager) in [
        (131_077, Manager::Narayana),
        (131_072, Manager::Narayana),
        (1_096_044_365, Manager::Atomikos),
        (1_114_926_712, Manager::Bitronix),
        (9752, Manager::Seata),
        (201, Manager::Flink),
        (1_463_898_948, Manager::WebSphere),
        (48_801, Manager::WebLogic),
        (1_197_822_575, Manager::Geronimo),
        (Manager::LOCKSTEP, Manager::Lockstep),
        (7, Manager::Other),
    ] {
        assert_eq!(Manager::of(format), manager);
        let gid = format!("{format}_AQ==_Ag==");
        assert_eq!(*Branch::parse(&gid).dialect(), Dialect::Xa(manager));
    }
    assert_eq!(&Manager::LOCKSTEP.to_be_bytes(), b"LKST");
}

#[test]
fn narayana_names_the_node_that_recovers() {
    let global = [&[0x5a; 28][..], b"node-1"].concat();
    let xid = |format| Xid {
        format,
        global: global.clone(),
        branch: Vec::new(),
    };
    assert_eq!(xid(131_077).owner().as_deref(), Some("node-1"));
    assert_eq!(xid(7).owner(), None);
    let bare = Xid {
        global: vec![0; 28],
        ..xid(131_077)
    };
    assert_eq!(bare.owner(), None);
}

#[test]
fn line_breaks_inside_a_triple_are_passed_over() {
    let xid = Xid {
        format: 131_077,
        global: (0..64).collect(),
        branch: vec![7; 60],
    };
    let gid = xid.to_string();
    let (head, tail) = gid.split_at(80);
    assert_eq!(Xid::parse(&format!("{head}\r\n{tail}")), Some(xid));
    assert!(gid.len() <= MOST_BYTES);
}

#[test]
fn a_pattern_goes_first() {
    let pattern = Pattern::new(r"^(?<global>order-\d+)/(?<branch>\w+)$").expect("a pattern");
    let read = |gid| Branch::parse_with(gid, Some(&pattern));
    let branch = read("order-17/stock");
    assert_eq!(*branch.dialect(), Dialect::Pattern);
    assert_eq!((branch.global(), branch.qualifier()), ("order-17", "stock"));
    assert_eq!(
        *read("131077_AQ==_Ag==").dialect(),
        Dialect::Xa(Manager::Narayana)
    );
    let empty = Pattern::new("^(?<global>x*)").expect("a pattern");
    assert_eq!(
        *Branch::parse_with("y", Some(&empty)).dialect(),
        Dialect::Plain
    );
    let error = Pattern::new("^(.+)-1$").expect_err("no group").to_string();
    assert!(error.contains("?<global>"), "{error}");
    assert!(Pattern::new("(").is_err());
}

#[test]
fn who_draws_names_for_each_branch_has_no_siblings() {
    for (gid, may) in [
        ("131077_AQ==_Ag==", true),
        ("201_AQ==_Ag==", false),
        ("_sa_0123456789abcdef0123456789abcdef", false),
        ("pg_gid_16394_781", false),
        ("anything", true),
    ] {
        assert_eq!(Branch::parse(gid).may_have_siblings(), may, "{gid}");
    }
}

#[test]
fn an_unknown_format_takes_padding_or_a_long_id() {
    are(
        "7_dXVpZC11dWlkLXV1aWQt_",
        "plain",
        "7_dXVpZC11dWlkLXV1aWQt_",
        "",
    );
    let long = "dXVpZC11dWlkLXV1aWQtdXVp";
    are(
        &format!("7_{long}_YnF1"),
        "xa",
        &format!("7_{long}"),
        "YnF1",
    );
    are("7_AQ==_YnF1", "xa", "7_AQ==", "YnF1");
    are("131077_YnF1_YnF1", "narayana", "131077_YnF1", "YnF1");
}

#[test]
fn keys_of_two_dialects_or_of_branches_without_siblings_differ() {
    let key = |gid, of| Branch::parse(gid).key(of);
    assert_eq!(key("131077_AQ==_Ag==", "a"), key("131077_AQ==_Aw==", "b"));
    assert_eq!(key("nightly", "a"), key("nightly", "b"));
    assert_ne!(key("citus_0_1_2_3", "a"), key("citus_0_1_2", "a"));
    assert_ne!(key("pg_gid_1_2", "a"), key("pg_gid_1_2", "b"));
    assert_ne!(key("201_AQ==_Ag==", "a"), key("201_AQ==_Aw==", "a"));
}

#[test]
fn every_writer_of_gids_has_a_word() {
    let managers = [
        131_077,
        1_096_044_365,
        1_114_926_712,
        9752,
        201,
        1_463_898_948,
        48_801,
        1_197_822_575,
        Manager::LOCKSTEP,
        5,
    ];
    let xa = managers.map(|format| Dialect::Xa(Manager::of(format)));
    let others = [
        Dialect::Dtm,
        Dialect::Npgsql,
        Dialect::Citus,
        Dialect::Subscriber,
        Dialect::SqlAlchemy,
        Dialect::Plain,
    ];
    let mut words: Vec<&str> = xa.iter().chain(&others).map(Dialect::as_str).collect();
    let mut known = MANAGERS.to_vec();
    words.sort_unstable();
    known.sort_unstable();
    assert_eq!(words, known);
}

proptest! {
    #[test]
    fn triples_round_trip_and_branches_of_one_agree(
        format in any::<i32>(),
        global in prop::collection::vec(any::<u8>(), 1..=64),
        branches in prop::array::uniform2(prop::collection::vec(any::<u8>(), 0..=64)),
    ) {
        let is_known = Manager::of(format) != Manager::Other;
        prop_assume!(is_known || global.len() >= 16);
        let xid = |branch: &Vec<u8>| Xid { format, global: global.clone(), branch: branch.clone() };
        let [a, b] = branches.each_ref().map(xid);
        prop_assert_eq!(Xid::parse(&a.to_string()), Some(a.clone()));
        let [of_a, of_b] = [&a, &b].map(|xid| Branch::parse(&xid.to_string()));
        prop_assert_eq!(of_a.global(), of_b.global());
        prop_assert_eq!(of_a.qualifier() == of_b.qualifier(), a.branch == b.branch);
        let other = Xid { format: format.wrapping_add(1), ..a };
        let other = Branch::parse(&other.to_string());
        prop_assert_ne!(other.global(), of_b.global());
    }

    /// Texts that are close to a form.
    #[test]
    fn names_made_by_hand_are_not_taken_for_branches_of_one(
        a in "[+-]?0{0,2}(1|17|131077)[_/-](load|order|0001|AQ==)([_/-](load|0001|0002|Ag==))?",
        b in "[+-]?0{0,2}(1|17|131077)[_/-](load|order|0001|AQ==)([_/-](load|0001|0002|Ag==))?",
    ) {
        let (of_a, of_b) = (Branch::parse(&a), Branch::parse(&b));
        let is_triple = |branch: &Branch| matches!(branch.dialect(), Dialect::Xa(_));
        if a != b && of_a.key("s") == of_b.key("s") {
            prop_assert!(is_triple(&of_a) && is_triple(&of_b), "{} {}", a, b);
            // Both have a form: one id, and another qualifier.
            let head = |gid: &str| gid.rsplit_once('_').map(|(head, _)| head.to_owned());
            prop_assert_eq!(head(&a), head(&b));
        }
    }

    #[test]
    fn every_text_is_a_branch(text in ".{0,40}") {
        let branch = Branch::parse(&text);
        prop_assert!(branch.global().is_empty() <= text.is_empty());
    }

    #[test]
    fn what_splits_is_put_together_again(text in "[a-z0-9_/-]{0,60}") {
        let branch = Branch::parse(&text);
        let between = match branch.dialect() {
            Dialect::Dtm => "-",
            Dialect::Npgsql => "/",
            Dialect::Citus => "_",
            Dialect::Xa(_) => return Ok(()),
            _ => "",
        };
        let again = [branch.global(), between, branch.qualifier()].concat();
        prop_assert_eq!(again, text);
    }
}
