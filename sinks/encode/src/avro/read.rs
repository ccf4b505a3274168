//! Back from Avro to the JSON that the same envelope has without it, text for text: so that what reads one reads the other.
//!
//! Read is what lockstep writes: by the schema that it was written with, which the registry has.

use std::collections::HashMap;

use serde_json::Value;

use super::ORIGINAL;
use super::types::{DOCUMENT, PAIR};
use super::wire::{Source, split};
use crate::envelope::Format;
use crate::value::number::{write_as_printed, write_java_float};
use crate::value::text::{write_base64_string, write_string};

/// How deep values may lie in each other.
const DEPTH: usize = 64;

/// The id of the schema of a key or value; `None` when it is not in the wire format.
#[must_use]
pub fn schema_id(bytes: &[u8]) -> Option<u32> {
    split(bytes).map(|(id, _)| id)
}

/// Reads what was written in one schema.
#[derive(Debug)]
pub struct Reader {
    /// Numbers as Java prints them, and documents as text.
    is_debezium: bool,
    root: Node,
    records: Vec<Record>,
}

#[derive(Clone, Debug)]
enum Node {
    Null,
    Bool,
    Integer,
    Float,
    Double,
    Bytes,
    Text,
    /// A JSON document, nested as it is.
    Document,
    Array(Box<Node>),
    Map(Box<Node>),
    Union(Vec<Node>),
    /// Into `records`.
    Record(usize),
}

#[derive(Debug, Default)]
struct Record {
    /// Two fields that stand for a list.
    is_pair: bool,
    /// `,"name":` and what follows.
    fields: Vec<(Box<[u8]>, Node)>,
}

impl Reader {
    /// One for a schema, as the registry has it, in an envelope; `None` for what lockstep does not write.
    #[must_use]
    pub fn new(format: Format, schema: &str) -> Option<Self> {
        let schema: Value = serde_json::from_str(schema).ok()?;
        let is_debezium = matches!(format, Format::Debezium(_));
        let mut parser = Parser {
            is_debezium,
            records: Vec::new(),
            named: HashMap::new(),
        };
        let root = parser.node(&schema, "", 0)?;
        Some(Reader {
            is_debezium,
            root,
            records: parser.records,
        })
    }

    /// The JSON of a key or a value in the wire format; `None` when it is not of this schema.
    #[must_use]
    pub fn json(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (_, rest) = split(bytes)?;
        let mut source = Source(rest);
        let mut out = Vec::with_capacity(rest.len() * 3);
        self.write(&self.root, &mut source, &mut out, 0)?;
        source.0.is_empty().then_some(out)
    }

    fn write(
        &self,
        node: &Node,
        source: &mut Source<'_>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Option<()> {
        if depth > DEPTH {
            return None;
        }
        match node {
            Node::Null => out.extend_from_slice(b"null"),
            Node::Bool => out.extend_from_slice(match source.byte()? {
                0 => b"false",
                1 => b"true",
                _ => return None,
            }),
            Node::Integer => {
                let mut number = itoa::Buffer::new();
                out.extend_from_slice(number.format(source.long()?).as_bytes());
            }
            Node::Float => {
                let bytes = source.take(4)?.try_into().ok()?;
                self.write_number(&printed(f32::from_le_bytes(bytes)), true, out)?;
            }
            Node::Double => {
                let bytes = source.take(8)?.try_into().ok()?;
                self.write_number(&printed(f64::from_le_bytes(bytes)), false, out)?;
            }
            Node::Bytes => write_base64_string(source.bytes()?, out),
            Node::Text => write_string(source.bytes()?, out).ok()?,
            Node::Document => out.extend_from_slice(source.bytes()?),
            Node::Array(items) => self.write_list(b"[]", source, out, |source, out| {
                self.write(items, source, out, depth + 1)
            })?,
            Node::Map(values) => self.write_list(b"{}", source, out, |source, out| {
                write_string(source.bytes()?, out).ok()?;
                out.push(b':');
                self.write(values, source, out, depth + 1)
            })?,
            Node::Union(branches) => {
                let branch = usize::try_from(source.long()?).ok()?;
                self.write(branches.get(branch)?, source, out, depth + 1)?;
            }
            Node::Record(index) => {
                let record = self.records.get(*index)?;
                let start = out.len();
                for (label, node) in &record.fields {
                    match record.is_pair {
                        true => out.push(b','),
                        false => out.extend_from_slice(label),
                    }
                    self.write(node, source, out, depth + 1)?;
                }
                let [open, close] = match record.is_pair {
                    true => *b"[]",
                    false => *b"{}",
                };
                match out.get_mut(start) {
                    Some(comma) => *comma = open,
                    None => out.push(open),
                }
                out.push(close);
            }
        }
        Some(())
    }

    fn write_list(
        &self,
        [open, close]: &[u8; 2],
        source: &mut Source<'_>,
        out: &mut Vec<u8>,
        mut item: impl FnMut(&mut Source<'_>, &mut Vec<u8>) -> Option<()>,
    ) -> Option<()> {
        out.push(*open);
        let mut is_first = true;
        loop {
            let count = source.block()?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                if !is_first {
                    out.push(b',');
                }
                is_first = false;
                // Items of no bytes could be without number.
                if source.0.is_empty() {
                    return None;
                }
                item(source, out)?;
            }
        }
        out.push(*close);
        Some(())
    }

    fn write_number(&self, shortest: &str, single: bool, out: &mut Vec<u8>) -> Option<()> {
        let done = match self.is_debezium {
            true => write_java_float(shortest.as_bytes(), single, out),
            false => write_as_printed(shortest, single, out),
        };
        done.ok()
    }
}

/// The shortest digits that are this number, or the word for what is none.
fn printed<T: std::fmt::LowerExp>(number: T) -> String {
    match &*format!("{number:e}") {
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        shortest => shortest.to_owned(),
    }
}

struct Parser {
    is_debezium: bool,
    records: Vec<Record>,
    /// By full name.
    named: HashMap<String, usize>,
}

impl Parser {
    fn node(&mut self, schema: &Value, namespace: &str, depth: usize) -> Option<Node> {
        if depth > DEPTH {
            return None;
        }
        match schema {
            Value::String(name) => self.primitive(name).or_else(|| {
                let full = full_name(name, namespace);
                self.named.get(&full).map(|index| Node::Record(*index))
            }),
            Value::Array(branches) => {
                let branches = branches.iter();
                let branches = branches.map(|branch| self.node(branch, namespace, depth + 1));
                branches.collect::<Option<Vec<_>>>().map(Node::Union)
            }
            Value::Object(parts) => match parts.get("type")?.as_str() {
                Some("record") => self.record(schema, namespace, depth),
                Some("array") => {
                    let items = self.node(parts.get("items")?, namespace, depth + 1)?;
                    Some(Node::Array(Box::new(items)))
                }
                Some("map") => {
                    let values = self.node(parts.get("values")?, namespace, depth + 1)?;
                    Some(Node::Map(Box::new(values)))
                }
                Some("string") if !self.is_debezium && meaning(schema) == Some(DOCUMENT) => {
                    Some(Node::Document)
                }
                Some(name) => self.primitive(name),
                None => self.node(parts.get("type")?, namespace, depth + 1),
            },
            _ => None,
        }
    }

    fn primitive(&self, name: &str) -> Option<Node> {
        Some(match name {
            "null" => Node::Null,
            "boolean" => Node::Bool,
            "int" | "long" => Node::Integer,
            "float" => Node::Float,
            "double" => Node::Double,
            "bytes" => Node::Bytes,
            "string" => Node::Text,
            _ => return None,
        })
    }

    fn record(&mut self, schema: &Value, outer: &str, depth: usize) -> Option<Node> {
        let namespace = schema["namespace"].as_str().unwrap_or(outer);
        let full = full_name(schema["name"].as_str()?, namespace);
        let namespace = full.rsplit_once('.').map_or("", |(namespace, _)| namespace);
        let index = self.records.len();
        self.records.push(Record::default());
        self.named.insert(full.clone(), index);
        let mut fields = Vec::new();
        for field in schema["fields"].as_array()? {
            let name = field[ORIGINAL]
                .as_str()
                .or_else(|| field["name"].as_str())?;
            let mut label = vec![b','];
            write_string(name.as_bytes(), &mut label).ok()?;
            label.push(b':');
            let node = self.node(&field["type"], namespace, depth + 1)?;
            fields.push((label.into_boxed_slice(), node));
        }
        self.records[index] = Record {
            is_pair: full == PAIR,
            fields,
        };
        Some(Node::Record(index))
    }
}

fn meaning(schema: &Value) -> Option<&str> {
    schema["connect.name"].as_str()
}

fn full_name(name: &str, namespace: &str) -> String {
    match name.contains('.') || namespace.is_empty() {
        true => name.to_owned(),
        false => format!("{namespace}.{name}"),
    }
}
