//! The open files: appended through a buffer, cut back to what is known to be durable.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_core::schema::{TableId, TableSchema};
use lockstep_core::sidecar::storage;
use lockstep_core::template::Template;
use lockstep_core::{Error, ErrorKind, Result};
use lockstep_encode::envelope::place;

use crate::sidecar::{Sidecar, sync_folder};

/// A buffer is written when it holds this much.
const BUFFER: usize = 256 * 1024;

/// One file.
pub(crate) struct Output {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Bytes of the file, those in the buffer not counted.
    written: u64,
    /// Whether there is something to sync.
    dirty: bool,
}

/// All files of a sink.
pub(crate) struct Files {
    template: Template,
    outputs: Vec<Output>,
    by_path: HashMap<PathBuf, usize>,
    /// By address of the schema, which is held so that the address stays its own.
    known: HashMap<usize, (Arc<TableSchema>, usize)>,
    /// The path before characters were replaced, to notice two tables that would share a file by accident.
    raw: HashMap<PathBuf, String>,
}

impl Files {
    /// Cuts each recorded file back to its durable length: what lies behind was never confirmed and comes again.
    pub(crate) fn restore(template: Template, sidecar: &Sidecar) -> Result<Self> {
        for (path, &durable) in &sidecar.state.files {
            restore(path, durable)?;
        }
        Ok(Files {
            template,
            outputs: Vec::new(),
            by_path: HashMap::new(),
            known: HashMap::new(),
            raw: HashMap::new(),
        })
    }

    /// The index of the file of a table, opened (and its length recorded) at the first call.
    pub(crate) fn of(&mut self, schema: &Arc<TableSchema>, sidecar: &mut Sidecar) -> Result<usize> {
        let address = Arc::as_ptr(schema) as usize;
        if let Some((_, index)) = self.known.get(&address) {
            return Ok(*index);
        }
        let path = self.path(schema)?;
        let index = match self.by_path.get(&path) {
            Some(&index) => index,
            None => {
                self.outputs.push(Output::open(&path, sidecar)?);
                self.by_path.insert(path, self.outputs.len() - 1);
                self.outputs.len() - 1
            }
        };
        // Schemas change rarely; but a source that alters a table all day must not fill memory.
        if self.known.len() >= 4096 {
            self.known.clear();
        }
        self.known.insert(address, (Arc::clone(schema), index));
        Ok(index)
    }

    fn path(&mut self, schema: &TableSchema) -> Result<PathBuf> {
        let schema = TableSchema {
            id: place(schema),
            ..schema.clone()
        };
        let raw = self.template.render(&schema, |_| None);
        let clean = TableSchema {
            source: component(&schema.source).into(),
            id: TableId::new(&component(&schema.id.schema), &component(&schema.id.name)),
            ..schema
        };
        let path = PathBuf::from(self.template.render(&clean, |_| None));
        let path =
            std::path::absolute(&path).map_err(|error| storage(&path, "resolving", error))?;
        let first = self.raw.entry(path.clone()).or_insert_with(|| raw.clone());
        if *first != raw {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "`{first}` and `{raw}` would both be the file {}",
                    path.display()
                ),
            )
            .remedy("rename one of the tables with a `route` transform, or change the template")
            .at("path"));
        }
        Ok(path)
    }

    pub(crate) fn output(&mut self, index: usize) -> &mut Output {
        &mut self.outputs[index]
    }

    /// Writes and syncs everything and notes the lengths in the sidecar, which is not saved here.
    pub(crate) fn sync(&mut self, sidecar: &mut Sidecar) -> Result<()> {
        for output in self.outputs.iter_mut().filter(|output| output.dirty) {
            output.write()?;
            output
                .file
                .sync_data()
                .map_err(|error| storage(&output.path, "syncing", error))?;
            output.dirty = false;
            sidecar
                .state
                .files
                .insert(output.path.clone(), output.written);
        }
        Ok(())
    }
}

/// A name as a part of a file name.
fn component(name: &str) -> String {
    if matches!(name, "." | "..") {
        return "_".repeat(name.len());
    }
    name.chars()
        .map(|c| if c == '/' || c.is_control() { '_' } else { c })
        .collect()
}

fn restore(path: &Path, durable: u64) -> Result<()> {
    let damaged = |found: String| {
        Error::new(
            ErrorKind::Storage,
            format!("{} {found}, and {durable} bytes of it were confirmed", path.display()),
        )
        .remedy("put the file back; or, to begin anew, delete it and the sink's state folder: the changes come again from the slot's position")
    };
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && durable == 0 => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged("is missing".to_owned()));
        }
        Err(error) => return Err(storage(path, "opening", error)),
    };
    let length = file
        .metadata()
        .map_err(|error| storage(path, "looking at", error))?
        .len();
    if length < durable {
        return Err(damaged(format!("has {length} bytes")));
    }
    if length > durable {
        tracing::info!(path = %path.display(), bytes = length - durable, "unconfirmed lines removed");
        file.set_len(durable)
            .and_then(|()| file.sync_all())
            .map_err(|error| storage(path, "cutting back", error))?;
    }
    Ok(())
}

impl Output {
    fn open(path: &Path, sidecar: &mut Sidecar) -> Result<Self> {
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        fs::create_dir_all(folder).map_err(|error| storage(folder, "making the folder", error))?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|error| storage(path, "opening", error))?;
        let written = match file.metadata().map(|metadata| metadata.is_file()) {
            Ok(true) => file.seek(SeekFrom::End(0)),
            Ok(false) => Ok(0),
            Err(error) => Err(error),
        };
        let written = written.map_err(|error| storage(path, "looking at", error))?;
        // Before the first line: after a crash, what lies behind this length is ours to remove and nothing else is.
        if sidecar.state.files.get(path) != Some(&written) {
            sync_folder(folder).map_err(|error| storage(folder, "syncing", error))?;
            sidecar.state.files.insert(path.to_owned(), written);
            sidecar.save()?;
        }
        Ok(Output {
            path: path.to_owned(),
            file,
            buffer: Vec::with_capacity(BUFFER + BUFFER / 4),
            written,
            dirty: false,
        })
    }

    /// The buffer, to append whole lines to; [`Output::appended`] comes next.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes the buffer when it is full.
    pub(crate) fn appended(&mut self) -> Result<()> {
        self.dirty = true;
        if self.buffer.len() >= BUFFER {
            self.write()
        } else {
            Ok(())
        }
    }

    fn write(&mut self) -> Result<()> {
        self.file
            .write_all(&self.buffer)
            .map_err(|error| storage(&self.path, "writing", error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        // One giant row must not be remembered for ever.
        self.buffer.shrink_to(BUFFER * 2);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::position::{Lsn, Position, SourceIdentity, SourceInfo};

    use super::*;

    /// The first line of a table makes a record of its file, while lines of others wait for their sync.
    #[test]
    fn a_new_file_makes_no_record_of_lines_that_are_not_synced() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = SourceInfo {
            name: "shop".into(),
            identity: SourceIdentity {
                system: 1,
                timeline: 1,
                incarnation: 0,
                database: "shop".into(),
            },
        };
        let position = Position {
            commit: Lsn(7),
            ordinal: 1,
        };
        let open = || Sidecar::open(&folder.path().join("state"), &|| false).expect("opens");
        let mut sidecar = open();
        let template = format!("{}/{{table}}", folder.path().display());
        let template = Template::parse_any(&template).expect("a template");
        let mut files = Files::restore(template, &sidecar).expect("restored");
        sidecar.note(&source, position.into());
        let schema = Arc::new(TableSchema::message("shop".into()));
        files.of(&schema, &mut sidecar).expect("opened");
        drop(sidecar);
        let mut sidecar = open();
        assert_eq!(sidecar.state.files.len(), 1);
        assert_eq!(sidecar.progress(&source), None);
        sidecar.note(&source, position.into());
        sidecar.synced();
        sidecar.save().expect("saved");
        drop(sidecar);
        let sidecar = open();
        assert_eq!(sidecar.progress(&source), Some(&position.into()));
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        assert_eq!(component("../x"), ".._x");
        assert_eq!(component(".."), "__");
        assert_eq!(component("a\nb"), "a_b");
        assert_eq!(component("größe"), "größe");
    }
}
