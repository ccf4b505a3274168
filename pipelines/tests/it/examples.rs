//! The example files have the shape of a pipeline file. Their kinds are those of the `lockstep` command, which reads
//! them in its own tests; here the graph and the general keys are checked.

use std::path::Path;

use lockstep_pipelines::Registry;
use lockstep_pipelines::file::{Variables, load_with};

#[test]
fn only_the_kinds_are_unknown_here() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut files = 0;
    for entry in std::fs::read_dir(directory).expect("examples") {
        let path = entry.expect("an entry").path();
        let variables = Variables::from([("MASK_SALT".to_owned(), "x".to_owned())]);
        let mistakes = load_with(&path, &Registry::new(), &variables).expect_err("no kinds");
        for mistake in &mistakes.0 {
            assert!(mistake.message.starts_with("there is no type"), "{mistake}");
        }
        files += 1;
    }
    assert_eq!(files, 5);
}
