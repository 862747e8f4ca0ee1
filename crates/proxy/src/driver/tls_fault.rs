//! Why TLS with somebody doesn't begin, in words that say what mends it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, pki_types::UnixTime};

const DAY_S: u64 = 24 * 60 * 60;

/// Whom it doesn't begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Server,
    Client,
}

/// What is wrong, said of the peer ("its certificate ..."). None: it isn't TLS that failed.
pub(crate) fn explained(error: &io::Error, peer: Peer) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    let known = match (error, peer) {
        (Error::InvalidCertificate(why), _) => certificate(why, peer),
        (Error::InvalidMessage(InvalidMessage::InvalidContentType), Peer::Server) => {
            Some("it doesn't speak TLS: is this its plain port?".to_owned())
        }
        (Error::InvalidMessage(InvalidMessage::InvalidContentType), Peer::Client) => {
            Some("it doesn't speak TLS, as this address does".to_owned())
        }
        (Error::NoCertificatesPresented, Peer::Client) => {
            Some("it shows no certificate, which --tls-client-ca asks for".to_owned())
        }
        (Error::AlertReceived(alert), _) => refusal(*alert, peer),
        _ => None,
    };
    Some(known.unwrap_or_else(|| error.to_string()))
}

/// What is wrong with the certificate that the peer shows.
fn certificate(why: &CertificateError, peer: Peer) -> Option<String> {
    Some(match (why, peer) {
        (CertificateError::NotValidForNameContext { expected, presented }, _) => {
            let expected = expected.to_str();
            let presented: Vec<&str> = presented.iter().filter_map(|name| plain(name)).collect();
            match presented.first() {
                // The name it is good for doesn't help where it is good for none.
                None => format!(
                    "its certificate has no subjectAltName, and a common name alone counts for nothing: \
                     make one with {expected} as its subjectAltName"
                ),
                Some(first) => format!(
                    "its certificate is good for {}, not for {expected}: put that into its \
                     subjectAltName, or say --tls-server-name {first}",
                    presented.join(", ")
                ),
            }
        }
        (CertificateError::ExpiredContext { time, not_after }, _) => {
            format!("its certificate has expired {} ago", span(*not_after, *time))
        }
        (CertificateError::NotValidYetContext { time, not_before }, _) => format!(
            "its certificate is good in {} only: is the clock of this machine right?",
            span(*time, *not_before)
        ),
        // An authority that was made anew under its old name has another key.
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, Peer::Server) => {
            "its certificate is by none of those in --server-tls-ca".to_owned()
        }
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, Peer::Client) => {
            "its certificate is by none of those in --tls-client-ca".to_owned()
        }
        _ => return None,
    })
}

/// What the peer found wrong with the proxy's certificate.
fn refusal(alert: AlertDescription, peer: Peer) -> Option<String> {
    Some(match (alert, peer) {
        (AlertDescription::CertificateRequired, Peer::Server) => {
            "it asks for a certificate: --server-tls-cert FILE --server-tls-key FILE".to_owned()
        }
        (AlertDescription::CertificateExpired, _) => {
            "it holds the certificate that is shown to it for expired".to_owned()
        }
        (
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            // What it trusts has the same name and another key.
            | AlertDescription::DecryptError,
            _,
        ) => format!("it doesn't trust the certificate that is shown to it ({alert:?})"),
        _ => return None,
    })
}

/// The name in `DnsName("a.example")` or `IpAddress(10.0.0.1)`, as a certificate's names are listed.
fn plain(name: &str) -> Option<&str> {
    let dns = || name.strip_prefix("DnsName(\"")?.strip_suffix("\")");
    dns().or_else(|| name.strip_prefix("IpAddress(")?.strip_suffix(')'))
}

/// Rounded down: `3 days`.
fn span(from: UnixTime, to: UnixTime) -> String {
    match to.as_secs().saturating_sub(from.as_secs()) {
        s if s < DAY_S => format!("{} minutes", s / 60),
        s => format!("{} days", s / DAY_S),
    }
}

/// Does this begin as a client does that speaks TLS? What a plain one sends doesn't.
/// Source: RFC 8446, 4.1.2 and 5.1.
pub(super) fn is_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 3, 0..=4, _, _, 1, ..])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::ServerName;

    use super::*;

    fn at(s: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(s))
    }

    fn named(presented: &[&str]) -> Error {
        let expected = ServerName::try_from("10.0.0.1").unwrap();
        let presented = presented.iter().map(|name| (*name).to_owned()).collect();
        CertificateError::NotValidForNameContext { expected, presented }.into()
    }

    #[test]
    fn what_mends_it_is_said() {
        use Peer::{Client, Server};
        let check = |error: Error, peer: Peer, expected: &str| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(explained(&error, peer).as_deref(), Some(expected));
        };
        check(
            named(&[]),
            Server,
            "its certificate has no subjectAltName, and a common name alone counts for nothing: make one with \
             10.0.0.1 as its subjectAltName",
        );
        check(
            named(&["DnsName(\"a.example\")", "IpAddress(10.0.0.2)"]),
            Server,
            "its certificate is good for a.example, 10.0.0.2, not for 10.0.0.1: put that into its \
             subjectAltName, or say --tls-server-name a.example",
        );
        let expired =
            CertificateError::ExpiredContext { time: at(3 * DAY_S + 7), not_after: at(7) };
        check(expired.into(), Server, "its certificate has expired 3 days ago");
        let early = CertificateError::NotValidYetContext { time: at(60), not_before: at(660) };
        check(
            early.into(),
            Client,
            "its certificate is good in 10 minutes only: is the clock of this machine right?",
        );
        let unknown = || CertificateError::UnknownIssuer.into();
        check(unknown(), Server, "its certificate is by none of those in --server-tls-ca");
        check(unknown(), Client, "its certificate is by none of those in --tls-client-ca");
        let same_name = CertificateError::BadSignature;
        check(same_name.into(), Server, "its certificate is by none of those in --server-tls-ca");
        let plain = || Error::InvalidMessage(InvalidMessage::InvalidContentType);
        check(plain(), Server, "it doesn't speak TLS: is this its plain port?");
        check(plain(), Client, "it doesn't speak TLS, as this address does");
        check(
            Error::NoCertificatesPresented,
            Client,
            "it shows no certificate, which --tls-client-ca asks for",
        );
        check(
            Error::AlertReceived(AlertDescription::CertificateRequired),
            Server,
            "it asks for a certificate: --server-tls-cert FILE --server-tls-key FILE",
        );
        check(
            Error::AlertReceived(AlertDescription::CertificateExpired),
            Client,
            "it holds the certificate that is shown to it for expired",
        );
        check(
            Error::AlertReceived(AlertDescription::UnknownCA),
            Client,
            "it doesn't trust the certificate that is shown to it (UnknownCA)",
        );
        // What isn't known is said as it was.
        check(Error::DecryptError, Server, &Error::DecryptError.to_string());
        assert_eq!(explained(&io::ErrorKind::TimedOut.into(), Server), None);
    }

    #[test]
    fn a_hello_is_told_from_a_request() {
        let check = |bytes: &[u8], expected: bool| assert_eq!(is_hello(bytes), expected);
        check(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], true);
        check(b"*1\r\n$4\r\nPING\r\n", false);
        check(b"PING\r\n", false);
        check(&[0x16, 3, 1], false);
        check(b"", false);
    }
}
