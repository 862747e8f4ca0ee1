//! Places for backups: a directory or a bucket.

pub mod reader;
pub mod storage;
