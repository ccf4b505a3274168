//! Who reads it.

use std::fmt;

use lockstep_kit::Component;

use crate::workload::Workload;

/// A process that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// `pg_recvlogical` into /dev/null.
    PgRecvlogical,
    /// lockstep, its batches dropped.
    Nothing,
    /// lockstep into a file of JSON lines, `debezium` envelope.
    File,
    /// lockstep into Kafka, `debezium` envelope, at least once.
    Kafka,
    /// lockstep into Kafka, `debezium` envelope, exactly once.
    KafkaTransactions,
    /// lockstep into Kafka, `flat` envelope, at least once.
    KafkaFlat,
    /// The same as [`Contender::Kafka`] in Avro.
    KafkaAvro,
    /// The same as [`Contender::KafkaFlat`] in Avro.
    KafkaFlatAvro,
    /// lockstep into Redis.
    Redis,
    /// lockstep into a stream of Redis, `debezium` envelope, exactly once.
    RedisStream,
    /// lockstep into a queue of RabbitMQ, `debezium` envelope, every confirm read.
    Rabbitmq,
    /// `psql` with COPY … TO STDOUT into /dev/null.
    Psql,
    /// lockstep's copy on one connection, its batches dropped.
    CopyOne,
    /// lockstep's copy as it is by default, on two connections, its batches dropped.
    CopyTwo,
}

impl Contender {
    /// Those that a workload is for.
    pub fn of(workload: Workload) -> &'static [Contender] {
        match workload {
            Workload::Table => &[Contender::Psql, Contender::CopyOne, Contender::CopyTwo],
            Workload::Batches => &[
                Contender::PgRecvlogical,
                Contender::Nothing,
                Contender::File,
                Contender::Kafka,
                Contender::KafkaTransactions,
                Contender::KafkaFlat,
                Contender::KafkaAvro,
                Contender::KafkaFlatAvro,
            ],
            Workload::Singles => &[
                Contender::PgRecvlogical,
                Contender::Nothing,
                Contender::File,
                Contender::Kafka,
                Contender::KafkaTransactions,
                Contender::RedisStream,
                Contender::Rabbitmq,
            ],
            Workload::Giant => &[
                Contender::PgRecvlogical,
                Contender::Nothing,
                Contender::File,
                Contender::Kafka,
                Contender::KafkaTransactions,
                Contender::Redis,
            ],
        }
    }

    /// The one that the others are compared with.
    pub fn yardstick(workload: Workload) -> Contender {
        match workload {
            Workload::Table => Contender::Psql,
            Workload::Batches | Workload::Singles | Workload::Giant => Contender::PgRecvlogical,
        }
    }

    /// In the output, and for `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Contender::PgRecvlogical => "pg_recvlogical > /dev/null",
            Contender::Nothing => "lockstep > nothing",
            Contender::File => "lockstep > file",
            Contender::Kafka => "lockstep > kafka",
            Contender::KafkaTransactions => "lockstep > kafka, exactly once",
            Contender::KafkaFlat => "lockstep > kafka, flat",
            Contender::KafkaAvro => "lockstep > kafka, avro",
            Contender::KafkaFlatAvro => "lockstep > kafka, flat in avro",
            Contender::Redis => "lockstep > redis",
            Contender::RedisStream => "lockstep > redis-stream",
            Contender::Rabbitmq => "lockstep > rabbitmq",
            Contender::Psql => "psql copy > /dev/null",
            Contender::CopyOne => "lockstep > nothing, 1 worker",
            Contender::CopyTwo => "lockstep > nothing, 2 workers",
        }
    }

    /// Whether it reads the stream with naps in between.
    pub fn naps(self) -> bool {
        match self {
            Contender::PgRecvlogical
            | Contender::Psql
            | Contender::CopyOne
            | Contender::CopyTwo => false,
            Contender::Nothing
            | Contender::File
            | Contender::Kafka
            | Contender::KafkaTransactions
            | Contender::KafkaFlat
            | Contender::KafkaAvro
            | Contender::KafkaFlatAvro
            | Contender::Redis
            | Contender::RedisStream
            | Contender::Rabbitmq => true,
        }
    }

    /// The servers that it writes to.
    pub fn needs(self) -> &'static [Component] {
        match self {
            Contender::Kafka | Contender::KafkaTransactions | Contender::KafkaFlat => {
                &[Component::Kafka]
            }
            Contender::KafkaAvro | Contender::KafkaFlatAvro => {
                &[Component::Kafka, Component::Registry]
            }
            Contender::Redis | Contender::RedisStream => &[Component::Redis],
            Contender::Rabbitmq => &[Component::Rabbitmq],
            Contender::PgRecvlogical
            | Contender::Nothing
            | Contender::File
            | Contender::Psql
            | Contender::CopyOne
            | Contender::CopyTwo => &[],
        }
    }

    /// The envelope of what it writes.
    pub fn format(self) -> &'static str {
        match self {
            Contender::KafkaFlat | Contender::KafkaFlatAvro => "flat",
            _ => "debezium",
        }
    }
}

/// A contender with what is set for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub contender: Contender,
    /// Microseconds; `None` for the product's.
    pub nap: Option<u32>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.contender.name())?;
        match self.nap {
            Some(micros) => write!(f, ", nap {micros} µs"),
            None => Ok(()),
        }
    }
}
