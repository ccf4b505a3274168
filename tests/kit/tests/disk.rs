//! Disks that can be full.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::fs;
use std::io::Write;

use lockstep_kit::disk::{SmallDisk, with_small_files};

/// `None`, loudly, where the kernel lets nobody mount: a property of the machine that nothing installs.
fn small_disk(bytes: u64) -> Option<SmallDisk> {
    match SmallDisk::start(bytes) {
        Ok(disk) => Some(disk),
        Err(error) => {
            let _ = std::io::stderr().write_all(format!("NOT RUN: {error}\n").as_bytes());
            None
        }
    }
}

#[test]
fn a_small_disk_is_full_until_there_is_room_again_and_keeps_its_files() {
    let Some(disk) = small_disk(1_000_000) else {
        return;
    };
    let path = disk.path().join("file");
    let write = |bytes: u32| {
        let script = format!("head -c {bytes} /dev/zero >> \"$1\"");
        let mut command = disk.inside("sh");
        let output = command.args(["-c", &script, "sh"]).arg(&path).output();
        let output = output.unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert!(write(1_000).0);
    disk.fill().unwrap();
    let (done, said) = write(10_000);
    assert!(!done && said.contains("No space left"), "{said}");
    disk.free().unwrap();
    let length = fs::metadata(disk.seen().join("file")).unwrap().len();
    assert!(length >= 1_000, "it kept what was there: {length}");
    assert!(write(10_000).0);
    let (done, said) = write(2_000_000);
    assert!(!done && said.contains("No space left"), "{said}");
    assert!(!path.exists(), "nobody outside sees it");
}

#[test]
fn a_file_cannot_grow_beyond_its_limit_and_the_writer_lives_to_tell() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let output = with_small_files("sh", 10_000)
        .args(["-c", "head -c 20000 /dev/zero > \"$1\"; echo goes on", "sh"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("File too large"), "{said}");
    assert_eq!(output.stdout, b"goes on\n");
}
