//! An S3 server on loopback over a directory. It checks signatures, and can be made to fail.
//!
//! It can also stand for Google Cloud Storage, whose XML API is much like S3's: then it checks a token.

use std::{
    fs,
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{AUTHORIZATION, HeaderValue, IF_NONE_MATCH},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::server::new_directory;

/// The bucket that is there.
pub const BUCKET: &str = "fleet-backups";
/// Who may use it.
pub const KEY: (&str, &str) = ("AKIDKEYFLEETTESTS", "a secret that only the tests know");
/// The token of who may use one like Google's.
pub const TOKEN: &str = "ya29.keyfleet-tests";

/// What happens to writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// They are answered with an error: no room.
    Full,
    /// Their connection ends.
    Cut,
    /// They are never answered.
    Silent,
}

/// Which writes are in trouble: those behind so many that are not.
type Plan = Arc<Mutex<Option<(Trouble, u32)>>>;

/// See the module. Dropping it ends it and removes its directory.
#[derive(Debug)]
pub struct Bucket {
    pub address: SocketAddr,
    directory: PathBuf,
    plan: Plan,
    task: JoinHandle<()>,
}

impl Bucket {
    /// Speaks S3.
    pub async fn start() -> Result<Self> {
        Self::speaking(true).await
    }

    /// Speaks as Google Cloud Storage does.
    pub async fn like_googles() -> Result<Self> {
        Self::speaking(false).await
    }

    async fn speaking(s3: bool) -> Result<Self> {
        let directory = new_directory()?;
        fs::create_dir_all(directory.join(BUCKET))?;
        let files = s3s_fs::FileSystem::new(&directory).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        if s3 {
            builder.set_auth(SimpleAuth::from_single(KEY.0, KEY.1));
        }
        let service = builder.build();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let plan = Plan::default();
        let task = tokio::spawn(serve(listener, service, s3, Arc::clone(&plan)));
        Ok(Self { address, directory, plan, task })
    }

    /// From now on writes fail, but for the first so many; None: none does.
    pub fn trouble(&self, plan: Option<(Trouble, u32)>) {
        *self.plan.lock().expect("nobody panics with it") = plan;
    }

    /// Everything that it holds, parts of unfinished uploads too: the files' paths, but for the notes
    /// that the server makes on objects and forgets to remove with them.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        collect(&self.directory, &mut files);
        let is_note = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
        let own = self.directory.clone();
        files.retain(|path| path.parent() != Some(&own) || !is_note(path));
        files.sort();
        files
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

async fn serve(listener: TcpListener, service: S3Service, s3: bool, plan: Plan) {
    while let Ok((socket, _)) = listener.accept().await {
        let (service, plan) = (service.clone(), Arc::clone(&plan));
        let answer =
            service_fn(move |request| answer(service.clone(), s3, Arc::clone(&plan), request));
        tokio::spawn(async move {
            // One that is cut is what was asked for.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

async fn answer(
    service: S3Service,
    s3: bool,
    plan: Plan,
    mut request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    if !s3 {
        let headers = request.headers_mut();
        let token = headers.remove(AUTHORIZATION);
        if token.is_none_or(|token| token != format!("Bearer {TOKEN}")) {
            let response = Response::builder().status(StatusCode::UNAUTHORIZED).body(Body::empty());
            return response.map_err(io::Error::other);
        }
        // Its way to say that there must be no such object yet.
        if headers.remove("x-goog-if-generation-match").is_some_and(|it| it == "0") {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
    }
    match in_trouble(&plan, &request) {
        None => {
            let answered = service.call(request.map(Body::from)).await;
            answered.map_err(|error| io::Error::other(format!("{error:?}")))
        }
        Some(Trouble::Full) => {
            // Who is answered before all was sent may never hear it.
            let mut body = request.into_body();
            while poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.is_some() {}
            let text = "<Error><Code>XMinioStorageFull</Code><Message>no room</Message></Error>";
            let response = Response::builder().status(507).body(Body::from(text.to_owned()));
            response.map_err(io::Error::other)
        }
        Some(Trouble::Cut) => Err(io::ErrorKind::ConnectionReset.into()),
        Some(Trouble::Silent) => std::future::pending().await,
    }
}

fn in_trouble(plan: &Plan, request: &Request<Incoming>) -> Option<Trouble> {
    let deletes = request.uri().query().is_some_and(|query| query.starts_with("delete"));
    if deletes || !matches!(*request.method(), Method::PUT | Method::POST) {
        return None;
    }
    let mut plan = plan.lock().expect("nobody panics with it");
    match plan.as_mut()? {
        (trouble, 0) => Some(*trouble),
        (_, good) => {
            *good -= 1;
            None
        }
    }
}
