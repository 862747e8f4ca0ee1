//! What clients are told when there is no reply for them. The texts are those that twemproxy's
//! users know.

pub(super) const REFUSED: &[u8] = b"-ERR Connection refused\r\n";
pub(super) const TIMED_OUT: &[u8] = b"-ERR Connection timed out\r\n";
pub(super) const LOST: &[u8] = b"-ERR Connection reset by peer\r\n";
pub(super) const HOST_DOWN: &[u8] = b"-ERR Host is down\r\n";
pub(super) const DESYNC: &[u8] = b"-ERR the server's reply could not be read\r\n";
pub(super) const NOBODY: &[u8] = b"-CLUSTERDOWN Hash slot not served\r\n";
pub(super) const CROSS_SLOT: &[u8] =
    b"-CROSSSLOT Keys in request don't hash to the same slot (give them a common {tag})\r\n";
pub(super) const APART: &[u8] =
    b"-CROSSSLOT Keys in request don't belong to the same server (give them a common {tag})\r\n";
/// To a request of a session, after which its connection was lost.
pub(super) const SESSION_LOST: &[u8] = b"-ERR the connection to the server was lost\r\n";
pub(super) const EXEC_LOST: &[u8] =
    b"-ERR the connection to the server was lost: EXEC may have been executed or not\r\n";
pub(super) const EXEC_ABORT: &[u8] =
    b"-EXECABORT Transaction discarded because of previous errors.\r\n";
pub(super) const NO_AUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";
pub(super) const MAYBE: &[u8] =
    b"-ERR the server's connection was lost; the command may have been executed\r\n";
pub(super) const MOVED_MEANWHILE: &[u8] =
    b"-TRYAGAIN the slot is being moved, and the request is too large to be kept: send it again\r\n";
pub(super) const TOO_LARGE: &[u8] =
    b"-ERR the replies are too large to be made one: ask for fewer keys\r\n";
