//! What it runs on.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};

/// One line: processors, memory, kernel.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
            .unwrap_or_else(|| "?".to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field(&read("/proc/cpuinfo"), "model name");
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let gib = memory
        .split(' ')
        .next()
        .and_then(|kib| kib.parse::<f64>().ok())
        .map_or(0.0, |kib| kib / f64::from(1 << 20));
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{processors} × {model}, {gib:.0} GiB, Linux {}",
        kernel.trim()
    )
}

/// CPU time that the whole machine has spent working, in microseconds (`/proc/stat`, counted in ticks of 10 ms).
pub fn busy_micros() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // user nice system (idle iowait) irq softirq; time stolen by the host is nobody's work.
    [0, 1, 2, 5, 6]
        .iter()
        .map(|&field| ticks.get(field).copied().unwrap_or(0))
        .sum::<u64>()
        * 10_000
}

/// The same things in a random order.
pub fn shuffled<T: Copy>(things: &[T]) -> Vec<T> {
    let mut left = things.to_vec();
    let mut out = Vec::with_capacity(left.len());
    while !left.is_empty() {
        // Each hasher has a random key of its own.
        let random = RandomState::new().build_hasher().finish();
        out.push(left.swap_remove((random % left.len() as u64) as usize));
    }
    out
}
