//! A build that exports nothing.

use lockstep_e2e::Setup;

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");

#[tokio::test]
async fn a_build_that_exports_no_traces_says_so_once_where_they_are_asked_for() {
    let setup = Setup::new("unheard", |_| "[sources]\n".to_owned());
    let file = setup.file().display().to_string();
    let told = async |arguments: &[&str], environment: &[(&str, &str)]| {
        let ended = setup.lockstep_with(arguments, environment).await;
        ended.stderr.matches("--features otel").count()
    };
    assert_eq!(told(&["run", &file], &[ENDPOINT]).await, 1);
    assert_eq!(told(&["run", &file], &[]).await, 0);
    let off = [ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")];
    assert_eq!(told(&["run", &file], &off).await, 0);
    let runs_nothing = ["check", &file, "--offline"];
    assert_eq!(told(&runs_nothing, &[ENDPOINT]).await, 0);
}
