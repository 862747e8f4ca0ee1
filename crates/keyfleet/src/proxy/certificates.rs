//! Certificates that are renewed while they are used.

use std::error::Error as _;

use proxy::driver::TlsError;

/// Tells of certificates that were read again. An error is told once: `told` is the last one.
pub fn note(renewed: Result<bool, TlsError>, told: &mut String) {
    match renewed {
        Ok(true) => tracing::info!("new certificates"),
        Ok(false) => told.clear(),
        Err(error) => {
            // A file may be half written.
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            let text = format!("{error}{cause}");
            if text != *told {
                tracing::error!(error = text, "the certificates stay as they are");
            }
            *told = text;
        }
    }
}
