//! What is wrong with bytes that should be a part of an RDB file.

/// Why bytes can't be read, without where they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("expected {0}")]
    Expected(&'static str),
    #[error("expected {expected}, found byte 0x{byte:02x}")]
    Found { expected: &'static str, byte: u8 },
    #[error("ends inside {0}")]
    Ends(&'static str),
    #[error("{what} of {bytes} bytes, above the limit of {limit}")]
    TooLarge { what: &'static str, bytes: u64, limit: u64 },
    #[error("{0} more bytes than the value has")]
    TooLong(usize),
    #[error("version {0} of the format is not known")]
    Version(String),
}
