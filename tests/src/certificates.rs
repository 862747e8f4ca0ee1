//! Certificates for tests, and clients that use them.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use protocol::{
    Value,
    resp::{Decoder, encode_command},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

use crate::{
    engines::engine,
    proxy::{TIME_MAX, wait_until},
    server::{free_port, new_directory},
};

/// Certificates in files, by one authority.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// In a directory of its own, its certificate in `ca.pem`.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let directory = new_directory().unwrap();
        fs::write(directory.join("ca.pem"), root.pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key), root: root.der().clone() }
    }

    /// The path of its file of that name.
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Writes `name.pem` and `name.key`, good for `localhost`.
    pub fn issue(&self, name: &str) -> CertificateDer<'static> {
        self.issue_for(name, &["localhost"])
    }

    /// Likewise, good for these names and addresses.
    pub fn issue_for(&self, name: &str, hosts: &[&str]) -> CertificateDer<'static> {
        self.issue_as(name, hosts, |_| ())
    }

    /// Likewise, but for its time, which was over a day after 1 January 2024.
    pub fn issue_expired(&self, name: &str, hosts: &[&str]) {
        self.issue_as(name, hosts, |params| {
            params.not_before = date_time_ymd(2024, 1, 1);
            params.not_after = date_time_ymd(2024, 1, 2);
        });
    }

    fn issue_as(
        &self,
        name: &str,
        hosts: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        change(&mut params);
        // One with its issuer's name would be taken for self-signed.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        certificate.der().clone()
    }

    /// Connects with the certificate of that name, where one is given.
    pub fn connect(&self, address: SocketAddr, own: Option<&str>) -> Secure {
        self.connect_to("localhost", address, own)
    }

    /// Likewise, asking for the host of that name.
    pub fn connect_to(&self, host: &str, address: SocketAddr, own: Option<&str>) -> Secure {
        self.connect_over(host, TcpStream::connect(address).unwrap(), own)
    }

    /// Likewise, over a connection that is there.
    pub fn connect_over(&self, host: &str, stream: TcpStream, own: Option<&str>) -> Secure {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = CertificateDer::from_pem_file(self.file(&format!("{name}.pem")));
                let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key")));
                builder.with_client_auth_cert(vec![chain.unwrap()], key.unwrap()).unwrap()
            }
        };
        let session =
            ClientConnection::new(Arc::new(config), ServerName::try_from(host.to_owned()).unwrap());
        stream.set_read_timeout(Some(TIME_MAX)).unwrap();
        Secure { stream: StreamOwned::new(session.unwrap(), stream), decoder: Decoder::default() }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.directory));
    }
}

/// A client that speaks TLS.
pub struct Secure {
    stream: StreamOwned<ClientConnection, TcpStream>,
    decoder: Decoder,
}

impl Secure {
    /// Asks, and waits for the answer.
    pub fn call<W: AsRef<[u8]>>(&mut self, words: &[W]) -> std::io::Result<Value> {
        let mut request = Vec::new();
        encode_command(words, &mut request);
        self.stream.write_all(&request)?;
        let mut piece = vec![0; 64 << 10];
        loop {
            if let Some(value) = self.decoder.next().unwrap() {
                return Ok(value);
            }
            match self.stream.read(&mut piece)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.decoder.feed(&piece[..count]),
            }
        }
    }

    /// What the other end has shown.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

/// A server that speaks TLS only, with clients that show a certificate; dropping it kills it.
pub struct TlsServer {
    pub address: SocketAddr,
    process: Child,
    directory: PathBuf,
}

impl TlsServer {
    /// With the authority's certificate of that name, and directives as arguments.
    pub fn start(authority: &Authority, certificate: &str, config: &[&str]) -> Self {
        for _ in 0..10 {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
            let directory = new_directory().unwrap();
            let port = address.port().to_string();
            let [own, key, roots] =
                [&format!("{certificate}.pem"), &format!("{certificate}.key"), "ca.pem"]
                    .map(|name| authority.file(name));
            let mut process = Command::new(engine("redis", "7.0").server)
                .args(["--port", "0", "--bind", "127.0.0.1", "--save", "", "--tls-port", &port])
                .args([
                    "--tls-cert-file",
                    &own,
                    "--tls-key-file",
                    &key,
                    "--tls-ca-cert-file",
                    &roots,
                ])
                .args(config)
                .current_dir(&directory)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let mut ended = false;
            wait_until("the server listens", || {
                ended = process.try_wait().unwrap().is_some();
                ended || TcpStream::connect(address).is_ok()
            });
            if !ended {
                return Self { address, process, directory };
            }
        }
        panic!("the server doesn't start");
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
