//! Which cells run, in which order, with which seeds.

use lockstep_kit::Random;

use crate::cell::Cell;
use crate::fault::FAULTS;
use crate::workload::WORKLOADS;

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
        assert_eq!(names.len(), 9 * 11);
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
