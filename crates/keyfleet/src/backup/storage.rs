//! Where backups are kept: a directory, or a bucket of S3 (and what speaks like it), Google Cloud or
//! Azure. Names are relative to the place that was given.
//!
//! An object appears whole or not at all. Memory is bounded: of what is written, two parts at a time.

use std::{env, fmt, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::{
    ClientConfigKey, ObjectStore, ObjectStoreExt as _, PutMode, RetryConfig, WriteMultipart,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    path::Path,
};

use crate::{errors::with_causes, store};

/// A request that fails is tried again so often, and no longer than this.
const RETRIES: usize = 4;
const RETRY_TIME_MAX: Duration = Duration::from_secs(60);

/// The smallest part of what is written in parts; S3 takes none below 5 MiB but the last.
pub const PART_BYTES_MIN: usize = 8 << 20;

/// Parts of one object that are on their way at a time.
const PARTS_AT_ONCE: usize = 1;

/// Something that could not be done at the place of the backups.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("no place for backups: {place:?}")]
    Place { place: String, source: Box<object_store::Error> },
    #[error("cannot {what} {object}")]
    Object { what: &'static str, object: String, source: Box<Told> },
    #[error(transparent)]
    Directory(#[from] store::StoreError),
}

/// Why, as people are told it: of a storage's answer what it says, without its XML.
#[derive(Debug)]
pub struct Told {
    error: object_store::Error,
    answer: Option<String>,
}

impl From<object_store::Error> for Told {
    fn from(error: object_store::Error) -> Self {
        let answer = answer(&with_causes(&error));
        Self { error, answer }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            Some(answer) => f.write_str(answer),
            None => self.error.fmt(f),
        }
    }
}

impl std::error::Error for Told {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if self.answer.is_some() { None } else { self.error.source() }
    }
}

/// `404 Not Found: NoSuchBucket: The bucket does not exist`, of a text that ends with a storage's answer.
/// Source: "REST error responses" of S3, which the others' are alike.
fn answer(text: &str) -> Option<String> {
    let inside = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0)
    };
    let (_, status) = text.split_once("status code: ")?;
    let status = status.split([':', '<']).next()?.trim();
    let message = inside("Message").unwrap_or_default().lines().next().unwrap_or_default().trim();
    let code = inside("Code")?;
    let told = [status, code, message];
    Some(told.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": "))
}

impl StorageError {
    /// What mends it, as far as the error tells.
    pub fn hint(&self) -> &'static str {
        use object_store::Error as E;
        let (object, source) = match self {
            Self::Place { place, .. } => {
                let named = place.split_once("://").is_some_and(|(_, bucket)| !bucket.is_empty());
                let places =
                    "a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX";
                return if named && is_url(place) { check_key(place) } else { places };
            }
            Self::Directory(_) => return "see who may use it: ls -ld",
            Self::Object { object, source, .. } => (object, source),
        };
        let text = with_causes(&**source);
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&["NoSuchBucket", "NoSuchContainer", "ContainerNotFound"]) {
            "the bucket is not there: make it, or check its name and region"
        } else if matches!(source.error, E::PermissionDenied { .. } | E::Unauthenticated { .. })
            || says(&[
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "401 Unauthorized",
                "403 Forbidden",
            ])
        {
            check_key(object)
        } else if says(&["No space left", "QuotaExceeded", "507 ", "XMinioStorageFull"]) {
            "it is full: make room there, or keep fewer backups (--keep)"
        } else if matches!(source.error, E::NotFound { .. }) {
            "see what is there: keyfleet backups --from PLACE"
        } else if says(&["timed out", "timeout", "error sending request", "connection"]) {
            "is it there, and fast enough? For one that isn't the provider's: AWS_ENDPOINT_URL, \
             GOOGLE_BASE_URL, AZURE_STORAGE_ENDPOINT"
        } else {
            "see what it says above, and run the same command again"
        }
    }
}

/// Where the key of a place comes from.
fn check_key(place: &str) -> &'static str {
    match place.split_once("://") {
        Some(("az", _)) => {
            "check the key: AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or \
             AZURE_STORAGE_SAS_KEY"
        }
        Some(("gs", _)) => {
            "check the key: GOOGLE_APPLICATION_CREDENTIALS, a service account's file"
        }
        _ => "check the key: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    }
}

/// Do these variables name an endpoint without TLS? Who does that means it.
fn is_plain(names: &[&str]) -> bool {
    names.iter().any(|name| env::var(name).is_ok_and(|url| url.starts_with("http:")))
}

/// See the module. Clones share it.
#[derive(Clone, Debug)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// As people write it, without a slash at the end.
    place: String,
    /// A directory on this machine.
    directory: Option<PathBuf>,
}

/// An object that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Relative to the place.
    pub name: String,
    pub bytes: u64,
    /// Milliseconds since the Unix epoch, by the storage's clock.
    pub changed_ms: u64,
}

/// A file or object as a user names it: `s3://bucket/dir/dump.rdb`.
pub fn is_url(place: &str) -> bool {
    ["s3://", "gs://", "az://", "file://"].iter().any(|scheme| place.starts_with(scheme))
}

impl Storage {
    /// A directory, `file://`, `s3://`, `gs://` or `az://`. Keys are taken from the environment, as
    /// the providers' own tools do (`AWS_ACCESS_KEY_ID`, …), or from the instance. Asks nobody.
    pub fn open(place: &str) -> Result<Self, StorageError> {
        Self::connect(place).map_err(|source| StorageError::Place {
            place: place.to_owned(),
            source: Box::new(source),
        })
    }

    fn connect(place: &str) -> object_store::Result<Self> {
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRY_TIME_MAX,
            ..RetryConfig::default()
        };
        let shown = place.trim_end_matches('/').to_owned();
        let store: Arc<dyn ObjectStore> = if place.starts_with("s3://") {
            let plain = is_plain(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
            let mut builder = AmazonS3Builder::from_env().with_url(place).with_retry(retry);
            if plain {
                builder = builder.with_allow_http(true);
            }
            Arc::new(builder.build()?)
        } else if place.starts_with("gs://") {
            let plain = is_plain(&["GOOGLE_BASE_URL"]);
            let mut builder = GoogleCloudStorageBuilder::from_env().with_url(place);
            if plain {
                let allow = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
                builder = builder.with_config(allow, "true");
            }
            Arc::new(builder.with_retry(retry).build()?)
        } else if place.starts_with("az://") {
            let plain = is_plain(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]);
            let mut builder = MicrosoftAzureBuilder::from_env().with_url(place).with_retry(retry);
            if plain {
                builder = builder.with_allow_http(true);
            }
            Arc::new(builder.build()?)
        } else {
            let path = PathBuf::from(place.strip_prefix("file://").unwrap_or(place));
            let path = std::path::absolute(&path).unwrap_or(path);
            // Links are followed here: names below are taken as they are.
            let path = path.canonicalize().unwrap_or(path);
            let prefix = Path::from_absolute_path(&path)?;
            let store = Arc::new(LocalFileSystem::new().with_fsync(true));
            return Ok(Self { store, prefix, place: shown, directory: Some(path) });
        };
        let (_, rest) = place.split_once("://").unwrap_or_default();
        let (_, prefix) = rest.split_once('/').unwrap_or_default();
        Ok(Self { store, prefix: Path::parse(prefix)?, place: shown, directory: None })
    }

    /// The place, as people write it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// An object as people write it.
    pub fn shown(&self, name: &str) -> String {
        if name.is_empty() { self.place.clone() } else { format!("{}/{name}", self.place) }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), Path::join)
    }

    fn fault(
        &self,
        what: &'static str,
        name: &str,
    ) -> impl Fn(object_store::Error) -> StorageError + use<> {
        let object = self.shown(name);
        move |source| {
            let source = Box::new(source.into());
            StorageError::Object { what, object: object.clone(), source }
        }
    }

    /// Makes a directory for its owner only, where the place is one.
    pub fn prepare(&self, under: &str) -> Result<(), StorageError> {
        if let Some(directory) = &self.directory {
            store::make_directory(&directory.join(under))?;
        }
        Ok(())
    }

    /// What stands directly below a name as directories do.
    pub async fn directories(&self, under: &str) -> Result<Vec<String>, StorageError> {
        let fault = self.fault("list", under);
        let found = self.store.list_with_delimiter(Some(&self.path(under))).await;
        let prefixes = match found {
            Ok(found) => found.common_prefixes,
            Err(object_store::Error::NotFound { .. }) if self.directory.is_some() => Vec::new(),
            Err(error) => return Err(fault(error)),
        };
        Ok(prefixes.iter().filter_map(|path| Some(path.filename()?.to_owned())).collect())
    }

    /// All objects below a name.
    pub async fn objects(&self, under: &str) -> Result<Vec<Object>, StorageError> {
        let found = self.store.list(Some(&self.path(under)));
        let found = found.map_ok(|meta| {
            let parts = meta.location.prefix_match(&self.prefix);
            let parts: Vec<String> = parts
                .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect())
                .unwrap_or_default();
            Object {
                name: parts.join("/"),
                bytes: meta.size,
                changed_ms: u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0),
            }
        });
        found.try_collect().await.map_err(self.fault("list", under))
    }

    /// One object's size and time; None where it isn't there.
    pub async fn find(&self, name: &str) -> Result<Option<Object>, StorageError> {
        match self.store.head(&self.path(name)).await {
            Ok(meta) => Ok(Some(Object {
                name: name.to_owned(),
                bytes: meta.size,
                changed_ms: u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.fault("look at", name)(error)),
        }
    }

    /// A small object; None where it isn't there.
    pub async fn read(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        let fault = self.fault("read", name);
        match self.store.get(&self.path(name)).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(fault)?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }

    /// A part of an object.
    pub async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let found = self.store.get_range(&self.path(name), range).await;
        found.map_err(self.fault("read", name))
    }

    /// Writes a small object, over one that is there.
    pub async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StorageError> {
        let done = self.store.put(&self.path(name), bytes.into()).await;
        done.map(drop).map_err(self.fault("write", name))
    }

    /// Writes a small object unless there is one; was it written?
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<bool, StorageError> {
        let path = self.path(name);
        match self.store.put_opts(&path, bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.fault("write", name)(error)),
        }
    }

    /// Writes an object for good; false: there is another one of this name. One that is there already
    /// may be ours: written, and the answer lost.
    pub async fn commit(&self, name: &str, bytes: Bytes) -> Result<bool, StorageError> {
        Ok(self.create(name, bytes.clone()).await?
            || self.read(name).await?.is_some_and(|found| found == bytes))
    }

    /// Begins to write a large object in parts of this size.
    pub async fn upload(&self, name: &str, part_bytes: usize) -> Result<Upload, StorageError> {
        let upload = self.store.put_multipart(&self.path(name)).await;
        let upload = upload.map_err(self.fault("write", name))?;
        let part_bytes = part_bytes.max(PART_BYTES_MIN);
        let parts = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        Ok(Upload { parts, name: name.to_owned(), storage: self.clone() })
    }

    /// Deletes an object; one that isn't there is no error.
    pub async fn delete(&self, name: &str) -> Result<(), StorageError> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.fault("delete", name)(error)),
        }
    }

    /// Deletes all below a name, this object before the others. Directories go too, with what a
    /// killed writer left half written.
    pub async fn delete_all(&self, under: &str, first: &str) -> Result<(), StorageError> {
        self.delete(&format!("{under}/{first}")).await?;
        for object in self.objects(under).await? {
            self.delete(&object.name).await?;
        }
        if let Some(directory) = &self.directory {
            store::remove_directory(&directory.join(under))?;
        }
        Ok(())
    }
}

/// An object being written. It is there only once [`Upload::finish`] has returned.
#[derive(Debug)]
pub struct Upload {
    parts: WriteMultipart,
    name: String,
    storage: Storage,
}

impl Upload {
    /// Adds bytes; waits while the storage is slower.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.parts.write(bytes);
        let room = self.parts.wait_for_capacity(PARTS_AT_ONCE + 1).await;
        room.map_err(self.storage.fault("write", &self.name))
    }

    /// Makes it appear. After an error nothing is there.
    pub async fn finish(self) -> Result<(), StorageError> {
        let fault = self.storage.fault("write", &self.name);
        self.parts.finish().await.map(drop).map_err(fault)
    }

    /// Gives it up; parts that were written are thrown away as far as the storage can be reached.
    pub async fn abort(self) {
        if let Err(error) = self.parts.abort().await {
            tracing::debug!("{} was not given up: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let check = |place: &str, object: &str, expected: &str| {
            let storage = Storage::open(place).unwrap();
            assert_eq!(storage.path(object).as_ref(), expected, "{place} {object}");
        };
        check("/no/such/dir/", "a/b", "no/such/dir/a/b");
        check("file:///no/such/dir", "a", "no/such/dir/a");
        check("/no/such", "", "no/such");
        assert!(Storage::open("s3://").is_err());
    }

    #[test]
    fn answers_are_told_without_xml() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(answer(text).as_deref(), expected, "{text}");
        };
        let begin = "Generic S3 error: Error performing GET http://h/b in 1ms - Server returned \
                     non-2xx status code: 404 Not Found: ";
        let xml = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>It is not there.\n\
                   RequestId:1</Message></Error>";
        let told = "404 Not Found: NoSuchBucket: It is not there.";
        check(&format!("{begin}{xml}"), Some(told));
        check(&format!("{begin}<Error><Code>Gone</Code></Error>"), Some("404 Not Found: Gone"));
        check(begin, None);
        check("connection refused", None);
    }

    #[test]
    fn hints_name_what_the_place_wants() {
        let check = |place: &str, expected: &str| {
            let source = Box::new(object_store::Error::NotImplemented {
                operation: String::new(),
                implementer: String::new(),
            });
            let hint = StorageError::Place { place: place.to_owned(), source }.hint();
            assert!(hint.contains(expected), "{place}: {hint}");
        };
        check("az://box/dir", "AZURE_STORAGE_ACCOUNT_KEY");
        check("gs://bucket", "GOOGLE_APPLICATION_CREDENTIALS");
        check("s3://bucket/dir", "AWS_SECRET_ACCESS_KEY");
        check("s3://", "a directory, s3://BUCKET");
        check("ftp://there", "a directory, s3://BUCKET");
    }
}
