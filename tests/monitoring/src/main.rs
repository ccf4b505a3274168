//! Writes `deploy/grafana`.

use std::io;

use lockstep_monitoring::rules::Rules;
use lockstep_monitoring::{dashboards, root};

fn main() -> io::Result<()> {
    let folder = root().join("deploy/grafana");
    std::fs::create_dir_all(&folder)?;
    for (file, dashboard) in dashboards(&Rules::shipped()) {
        std::fs::write(folder.join(file), dashboard.to_text())?;
    }
    Ok(())
}
