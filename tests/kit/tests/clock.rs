//! A clock that is wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_kit::clock::Clock;

fn seconds(clock: &Clock, script: &str) -> i64 {
    let mut command = Command::new("python3");
    command.args(["-c", script]).envs(clock.variables());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse::<f64>().unwrap() as i64
}

#[test]
fn one_process_sees_another_time_and_the_monotonic_clock_stays() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::new(folder.path()).unwrap();
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        since.as_secs() as i64
    };
    for jump in [0, 3_600, -86_400] {
        clock.set(jump * 1_000).unwrap();
        let seen = seconds(&clock, "import time; print(time.time())");
        assert!((seen - now() - jump).abs() <= 5, "{jump}: {seen}");
    }
    let script = "import time; print(time.monotonic())";
    let moved = seconds(&clock, script);
    clock.set(0).unwrap();
    assert!((seconds(&clock, script) - moved).abs() <= 5);
}

#[test]
fn waits_last_as_long_as_they_should() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::new(folder.path()).unwrap();
    clock.set(-3_600_000).unwrap();
    let began = std::time::Instant::now();
    // What librdkafka does: a wait on a condition until a moment of the wall clock, and one that a signal ends long before.
    let program = "#include <pthread.h>\n#include <time.h>\n#include <errno.h>\n#include <threads.h>\n\
        pthread_cond_t c = PTHREAD_COND_INITIALIZER; pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER; int woken;\n\
        void *wake(void *p) { pthread_mutex_lock(&m); woken = 1; pthread_cond_signal(&c); pthread_mutex_unlock(&m); return p; }\n\
        int main(void) { struct timespec t; pthread_t thread;\n\
        clock_gettime(CLOCK_REALTIME, &t); t.tv_sec += 1; pthread_mutex_lock(&m);\n\
        while (pthread_cond_timedwait(&c, &m, &t) != ETIMEDOUT) {}\n\
        pthread_create(&thread, 0, wake, 0); t.tv_sec += 100;\n\
        while (!woken) if (pthread_cond_timedwait(&c, &m, &t) == ETIMEDOUT) return 1;\n\
        cnd_t d; mtx_t n; cnd_init(&d); mtx_init(&n, mtx_plain); mtx_lock(&n);\n\
        timespec_get(&t, TIME_UTC); t.tv_nsec += 9e8; t.tv_sec += t.tv_nsec / (int)1e9; t.tv_nsec %= (int)1e9;\n\
        while (cnd_timedwait(&d, &n, &t) != thrd_timedout) {}\n\
        return 0; }\n";
    let source = folder.path().join("wait.c");
    std::fs::write(&source, program).unwrap();
    let wait = folder.path().join("wait");
    let made = Command::new("cc")
        .arg(&source)
        .args(["-pthread", "-o"])
        .arg(&wait)
        .status();
    assert!(made.unwrap().success());
    let compiled = began.elapsed();
    let status = Command::new(&wait).envs(clock.variables()).status();
    assert!(status.unwrap().success());
    let took = began.elapsed() - compiled;
    assert!(
        took > Duration::from_millis(1_800) && took < Duration::from_secs(20),
        "{took:?}"
    );
}
