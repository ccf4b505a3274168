//! The `lockstep` command, with one sink more.

fn main() -> std::process::ExitCode {
    lockstep::main(lockstep::builtin().with_sink::<acme_sink::Acme>())
}
