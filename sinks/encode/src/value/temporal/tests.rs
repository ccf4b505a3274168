use super::*;
use proptest::prelude::*;

fn written(write: impl FnOnce(&mut Vec<u8>) -> Done) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("valid");
    String::from_utf8(out).expect("ASCII")
}

#[test]
fn days() {
    for (text, expected) in [
        ("1970-01-01", "0"),
        ("2024-02-29", "19782"),
        ("0044-03-15 BC", "-735160"),
        ("1582-10-10", "-141432"),
        ("0001-12-31 BC", "-719163"),
        ("0001-01-01", "-719162"),
        ("5874897-12-31", "2145042905"),
        ("infinity", "2147483647"),
        ("-infinity", "-2147483648"),
    ] {
        assert_eq!(
            written(|out| write_days(text.as_bytes(), out)),
            expected,
            "{text}"
        );
    }
}

#[test]
fn timestamps_as_numbers() {
    for (text, unit, expected) in [
        (
            "2024-02-29 13:51:30.123456",
            Unit::Micros,
            "1709214690123456",
        ),
        ("2024-02-29 13:51:30.123", Unit::Millis, "1709214690123"),
        ("1969-12-31 23:59:59.999", Unit::Millis, "-1"),
        ("0044-03-15 00:00:00 BC", Unit::Micros, "-63517824000000000"),
        (
            "294276-12-31 23:59:59.999999",
            Unit::Micros,
            "9224318015999999999",
        ),
        ("infinity", Unit::Micros, "9223372036825200000"),
        ("-infinity", Unit::Micros, "-9223372036832400000"),
        ("infinity", Unit::Millis, "9223372036825200"),
        ("-infinity", Unit::Millis, "-9223372036832400"),
    ] {
        assert_eq!(
            written(|out| write_epoch(text.as_bytes(), unit, out)),
            expected,
            "{text}"
        );
    }
    assert_eq!(
        written(|out| write_time(b"13:51:30.123", Unit::Millis, out)),
        "49890123"
    );
    assert_eq!(
        written(|out| write_time(b"24:00:00", Unit::Micros, out)),
        "86400000000"
    );
}

#[test]
fn instants_are_utc() {
    for (text, fraction, expected) in [
        (
            "2024-02-29 11:51:30.123456+00",
            Fraction::Padded(6),
            "2024-02-29T11:51:30.123456Z",
        ),
        (
            "2024-02-29 11:51:30+00",
            Fraction::Padded(6),
            "2024-02-29T11:51:30.000000Z",
        ),
        (
            "2024-02-29 11:51:30.12+00",
            Fraction::Padded(3),
            "2024-02-29T11:51:30.120Z",
        ),
        (
            "2024-02-29 11:51:30+00",
            Fraction::Padded(0),
            "2024-02-29T11:51:30Z",
        ),
        (
            "2024-03-01 01:30:00+05:30",
            Fraction::Needed,
            "2024-02-29T20:00:00Z",
        ),
        (
            "2023-12-31 20:00:00.5-08",
            Fraction::Needed,
            "2024-01-01T04:00:00.5Z",
        ),
        (
            "0044-03-15 00:00:00+00 BC",
            Fraction::Padded(6),
            "-0043-03-15T00:00:00.000000Z",
        ),
        (
            "99999-12-31 23:59:59+00",
            Fraction::Padded(6),
            "+99999-12-31T23:59:59.000000Z",
        ),
        ("infinity", Fraction::Padded(6), "infinity"),
    ] {
        assert_eq!(
            written(|out| write_instant(text.as_bytes(), fraction, out)),
            format!("\"{expected}\""),
            "{text}"
        );
    }
    for (text, expected) in [
        ("13:51:30.123456+02", "11:51:30.123456Z"),
        ("24:00:00+00", "00:00:00Z"),
        ("01:00:00+02", "23:00:00Z"),
        ("10:00:00.1-00:30", "10:30:00.1Z"),
    ] {
        assert_eq!(
            written(|out| write_time_utc(text.as_bytes(), out)),
            format!("\"{expected}\""),
            "{text}"
        );
    }
}

#[test]
fn iso_forms() {
    assert_eq!(
        written(|out| write_date_iso(b"0044-03-15 BC", out)),
        "\"-0043-03-15\""
    );
    assert_eq!(
        written(|out| write_date_iso(b"12024-03-15", out)),
        "\"+12024-03-15\""
    );
    assert_eq!(
        written(|out| write_timestamp_iso(b"2024-02-29 13:51:30.5", out)),
        "\"2024-02-29T13:51:30.5\""
    );
    assert_eq!(
        written(|out| write_timetz_iso(b"13:51:30+02", out)),
        "\"13:51:30+02:00\""
    );
    assert_eq!(
        written(|out| write_timetz_iso(b"13:51:30+00", out)),
        "\"13:51:30Z\""
    );
    assert_eq!(
        written(|out| write_time_iso(b"24:00:00", out)),
        "\"24:00:00\""
    );
    let mut out = Vec::new();
    write_micros_iso(-1, &mut out);
    assert_eq!(out, b"\"1969-12-31T23:59:59.999999Z\"");
}

#[test]
fn what_is_no_time_is_refused() {
    for bad in [
        "",
        "2024",
        "2024-13-01",
        "2024-01-00",
        "29/02/2024",
        "2024-02-29x",
        "2024-02-29 13:51:30",
    ] {
        assert!(
            write_days(bad.as_bytes(), &mut Vec::new()).is_err(),
            "{bad}"
        );
    }
    for bad in [
        "",
        "2024-02-29",
        "2024-02-29 25:00:00",
        "2024-02-29 13:51:30.",
        "2024-02-29 13:51:30.1234567",
    ] {
        assert!(
            write_epoch(bad.as_bytes(), Unit::Micros, &mut Vec::new()).is_err(),
            "{bad}"
        );
    }
    assert!(write_instant(b"2024-02-29 13:51:30", Fraction::Needed, &mut Vec::new()).is_err());
}

proptest! {
    #[test]
    fn days_and_dates_are_inverse(days in -2_000_000_000_i64..2_200_000_000) {
        let date = Date::from_days(days);
        prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
        prop_assert_eq!(date.days(), days);
    }
}

/// A time zone of +00:00 takes the long way to the same result as +00.
fn long_way(text: &str, fraction: Fraction) -> String {
    written(|out| write_instant(format!("{text}+00:00").as_bytes(), fraction, out))
}

proptest! {
    #[test]
    fn the_short_way_agrees_with_the_long_one(
        days in -700_000_i64..2_900_000,
        micros in 0..86_400_000_000_i64,
        digits in 0..7_u32,
    ) {
        let micros = micros / 10_i64.pow(6 - digits) * 10_i64.pow(6 - digits);
        let mut text = Vec::new();
        Date::from_days(days).write(&mut text);
        text.push(b' ');
        write_clock(micros, Fraction::Needed, &mut text);
        let text = String::from_utf8(text).expect("ASCII");
        prop_assert!(Common::parse(text.as_bytes()).is_some());
        for fraction in [Fraction::Needed, Fraction::Padded(0), Fraction::Padded(3), Fraction::Padded(6)] {
            let short = written(|out| write_instant(format!("{text}+00").as_bytes(), fraction, out));
            prop_assert_eq!(short, long_way(&text, fraction));
        }
        let epoch = written(|out| write_epoch(text.as_bytes(), Unit::Micros, out));
        prop_assert_eq!(epoch, (days * DAY + micros).to_string());
    }
}
