//! Examples with `…` where more would stand.

/// A JSON text without its `…`: where they stand for items, for all of an object, or at the end of a text.
#[must_use]
pub fn json(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    let mut escaped = false;
    for one in text.chars() {
        match one {
            _ if escaped => escaped = false,
            '\\' if inside => escaped = true,
            '"' => inside = !inside,
            '…' if !inside => continue,
            ']' | '}' if !inside => {
                let kept = out.trim_end().trim_end_matches(',').len();
                out.truncate(kept);
            }
            _ => {}
        }
        out.push(one);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::json;

    #[test]
    fn what_is_left_out_is_left_out() {
        let text = r#"{"a": [{"b": 1}, …], "c": {…}, "d": "x…, ]", "e": 2, …}"#;
        assert_eq!(
            json(text),
            r#"{"a": [{"b": 1}], "c": {}, "d": "x…, ]", "e": 2}"#
        );
    }
}
