//! Short-lived programs, each with a deadline.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::process::Command;

/// A program did not do its job.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{program} cannot be started")]
    Start { program: String, source: std::io::Error },
    #[error("{program} took longer than {seconds} s")]
    Late { program: String, seconds: u64 },
    #[error("{program}: {message}")]
    Failed { program: String, message: String },
}

/// The program with the libraries that were unpacked with it.
pub fn program(path: &Path, library_path: Option<&Path>) -> Command {
    let mut command = Command::new(path);
    if let Some(library_path) = library_path {
        command.env("LD_LIBRARY_PATH", library_path);
    }
    command
}

/// Runs it to its end and returns its standard output. It is killed at the deadline.
pub async fn output(command: &mut Command, deadline: Duration) -> Result<String, CommandError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).env("LC_ALL", "C").kill_on_drop(true);
    match tokio::time::timeout(deadline, command.output()).await {
        Err(_) => Err(CommandError::Late { program, seconds: deadline.as_secs() }),
        Ok(Err(source)) => Err(CommandError::Start { program, source }),
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => {
            let complaint = last_line(&output.stderr).unwrap_or_else(|| output.status.to_string());
            Err(CommandError::Failed { program, message: complaint })
        }
    }
}

/// The last line that says something, cut to a readable length.
fn last_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn says_what_went_wrong() {
        let second = Duration::from_secs(10);
        assert_eq!(output(&mut shell("echo out; echo err >&2"), second).await.unwrap(), "out\n");
        let failed = output(&mut shell("echo first >&2; echo last >&2; exit 3"), second).await;
        assert_eq!(failed.unwrap_err().to_string(), "sh: last");
        let silent = output(&mut shell("exit 3"), second).await;
        assert_eq!(silent.unwrap_err().to_string(), "sh: exit status: 3");
        let late = output(&mut shell("read never < /dev/zero"), Duration::from_millis(50)).await;
        assert!(matches!(late, Err(CommandError::Late { .. })), "{late:?}");
        let missing = output(&mut Command::new("/no/such/program"), second).await;
        assert!(matches!(missing, Err(CommandError::Start { .. })), "{missing:?}");
    }
}
