//! Which cells run, in which order, with which seeds.

use lockstep_kit::Random;

use crate::cell::Cell;
use crate::contestant::Contestant;
use crate::fault::{FAULTS, Fault};
use crate::workload::{WORKLOADS, Workload};

/// All cells of a round, each with a seed of its own, in an order that the seed decides.
pub fn round(seed: u64, number: u64) -> Vec<(Cell, u64)> {
    let mut random = Random::seeded(seed.wrapping_add(number.wrapping_mul(1_000_003)));
    let cells = WORKLOADS
        .iter()
        .flat_map(|&workload| FAULTS.iter().map(move |&fault| Cell { workload, fault }));
    let mut cells: Vec<(Cell, u64)> = cells.map(|cell| (cell, random.below(1 << 31))).collect();
    random.shuffle(&mut cells);
    cells
}

/// What a peer goes through that starts in ten seconds and not in one: the cases that its position cannot tell apart, then
/// every workload under its own end, then the two tables under the other faults. In this order, and again with other seeds.
pub fn of_peers(seed: u64) -> impl Iterator<Item = (Contestant, Cell, u64)> {
    use Contestant::{Debezium, DebeziumWithTransactions};
    let mut cells = Vec::new();
    for (contestant, workload, fault) in [
        (Debezium, Workload::Copy, Fault::Kill),
        (Debezium, Workload::Copy, Fault::Stop),
        (Debezium, Workload::Interleaved, Fault::Stop),
        (DebeziumWithTransactions, Workload::Interleaved, Fault::Stop),
        (DebeziumWithTransactions, Workload::Interleaved, Fault::Kill),
    ] {
        cells.push((contestant, Cell { workload, fault }));
    }
    let others = [
        Fault::Postgres,
        Fault::Kafka,
        Fault::Cut,
        Fault::BlackHole,
        Fault::Freeze,
    ];
    let of_itself = [Fault::Kill, Fault::Stop];
    let all = WORKLOADS
        .iter()
        .flat_map(|&workload| of_itself.iter().map(move |&fault| Cell { workload, fault }));
    let beside = others.iter().flat_map(|&fault| {
        [Workload::Copy, Workload::Keys].map(|workload| Cell { workload, fault })
    });
    for cell in all.chain(beside) {
        if !cells.contains(&(Debezium, cell)) {
            cells.push((Debezium, cell));
        }
    }
    let mut random = Random::seeded(seed);
    cells
        .into_iter()
        .cycle()
        .map(move |(contestant, cell)| (contestant, cell, random.below(1 << 31)))
}

/// The cell of this name.
///
/// # Errors
/// When there is none, with those there are.
pub fn named(name: &str) -> Result<Cell, String> {
    let cells = round(0, 0);
    let found = cells.iter().find(|(cell, _)| cell.name() == name);
    found.map(|(cell, _)| *cell).ok_or_else(|| {
        let workloads = WORKLOADS.map(|workload| workload.name()).join(", ");
        let faults = FAULTS.map(|fault| fault.name()).join(", ");
        format!("there is no cell {name:?}: a workload ({workloads}), `/`, and a fault ({faults})")
    })
}

#[cfg(test)]
mod tests {
    use super::{named, round};

    #[test]
    fn a_round_has_every_cell_once_and_the_same_again_for_a_seed() {
        let one = round(7, 0);
        let mut names: Vec<String> = one.iter().map(|(cell, _)| cell.name()).collect();
        assert_eq!(one, round(7, 0));
        assert_ne!(one, round(7, 1));
        assert_ne!(one, round(8, 0));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 9 * 16);
    }

    #[test]
    fn a_cell_has_a_name() {
        assert_eq!(
            named("keys/black-hole").map(|cell| cell.name()),
            Ok("keys/black-hole".into())
        );
        assert!(named("keys").is_err_and(|error| error.contains("truncate")));
    }
}
