//! The users of a proxy, beside those that its servers know.

use super::{
    START, SpecErrors,
    quantity::Size,
    read::{Decode, Entries, Field, Place, Reader, mapping},
    tree,
};

/// One of them.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUser {
    pub name: String,
    pub password: UserPassword,
    /// Who he is at the servers, with that user's password; None: who the proxy is.
    pub server_login: Option<(String, String)>,
    pub clients_max: Option<u32>,
    pub requests_per_second: Option<u32>,
    pub bytes_per_second: Option<u64>,
}

/// What he has to say.
#[derive(Clone, PartialEq, Eq)]
pub enum UserPassword {
    Plain(String),
    Sha256([u8; 32]),
}

mapping! {
    /// Who may use the proxy.
    UsersSpec {
        /// The users, by the name that they give in AUTH.
        users: Entries<UserSpec>,
    }
    required ["users"] later []
}

mapping! {
    /// One user.
    UserSpec {
        /// What he has to say.
        password: String,
        /// Or its SHA-256, as 64 hexadecimal digits.
        sha256: String,
        /// The servers' user that his requests are made as. Default: the one that the proxy has.
        server_user: String,
        /// That user's password.
        server_password: String,
        /// How many connections he may have at once. Default: any number.
        clients_max: u32,
        /// What he may ask a second; who asks more is read later. Default: as much as he likes.
        requests_per_second: u32,
        /// Bytes a second, of requests and replies, such as 10MiB. Default: as many as he likes.
        bytes_per_second: Size,
    }
    required [] later []
}

/// Reads a file of users. `file` is its name for messages.
pub fn parse(text: &str, file: &str) -> Result<Vec<ProxyUser>, SpecErrors> {
    let mut reader = Reader::new(file);
    let users = read(text, &mut reader);
    let (errors, _) = reader.finish();
    match users {
        Some(users) if errors.is_empty() => Ok(users),
        _ => Err(SpecErrors(errors)),
    }
}

/// None only where an error was reported.
fn read(text: &str, reader: &mut Reader) -> Option<Vec<ProxyUser>> {
    let start = Place { mark: START, path: String::new() };
    let root = match tree::read(text) {
        Ok(Some(root)) => root,
        Ok(None) => {
            reader.error(&start, "the file says nothing").hint("begin with \"users:\"");
            return None;
        }
        Err(bad) => {
            let place = Place { mark: bad.mark, path: String::new() };
            reader.error(&place, bad.message).hint = bad.hint;
            return None;
        }
    };
    let users = UsersSpec::decode(&root, reader)?.users.given()?.value;
    let users: Vec<_> = users
        .0
        .into_iter()
        .map(|entry| user(entry.value?, entry.key.value, &entry.key.place, reader))
        .collect();
    users.into_iter().collect()
}

fn user(spec: UserSpec, name: String, place: &Place, reader: &mut Reader) -> Option<ProxyUser> {
    let password = match (spec.password, spec.sha256) {
        (Field::Given(plain), Field::Missing) => Some(UserPassword::Plain(plain.value)),
        (Field::Missing, Field::Given(hash)) => {
            let digest = digest(&hash.value);
            if digest.is_none() {
                reader.error(&hash.place, "not 64 hexadecimal digits");
            }
            digest.map(UserPassword::Sha256)
        }
        (Field::Bad, _) | (_, Field::Bad) => None,
        _ => {
            reader.error(place, "a user has either \"password\" or \"sha256\"");
            None
        }
    };
    let server_login = match (spec.server_user.optional(), spec.server_password.optional()) {
        (Ok(Some(user)), Ok(Some(password))) => Some(Some((user, password))),
        (Ok(None), Ok(None)) => Some(None),
        (Err(_), _) | (_, Err(_)) => None,
        _ => {
            reader.error(place, "\"server-user\" and \"server-password\" stand together");
            None
        }
    };
    Some(ProxyUser {
        name,
        password: password?,
        server_login: server_login?,
        clients_max: spec.clients_max.optional().ok()?,
        requests_per_second: spec.requests_per_second.optional().ok()?,
        bytes_per_second: spec.bytes_per_second.optional().ok()?.map(|size| size.0.0),
    })
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let bytes: Vec<u8> =
        digits?.chunks(2).map(|pair| pair.iter().fold(0, |b, d| b << 4 | d)).collect();
    (text.len() == 64).then_some(bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let text = "\
users:
  app: {password: one, server-user: cache, server-password: two, clients-max: 10}
  batch:
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    requests-per-second: 1000
    bytes-per-second: 1MiB
";
        let users = parse(text, "users.yaml").unwrap();
        let [app, batch] = &users[..] else { panic!("{}", users.len()) };
        assert_eq!((app.name.as_str(), app.clients_max), ("app", Some(10)));
        assert_eq!(app.server_login, Some(("cache".to_owned(), "two".to_owned())));
        let UserPassword::Sha256(hash) = batch.password else { panic!("a password") };
        assert_eq!((hash[0], hash[31]), (0x9f, 0x08));
        assert_eq!(batch.server_login, None);
        assert_eq!(
            (batch.requests_per_second, batch.bytes_per_second),
            (Some(1000), Some(1 << 20))
        );
    }

    #[test]
    fn refused() {
        let check = |text: &str, expected: &str| {
            let errors = parse(text, "u").err().map(|errors| errors.to_string());
            assert_eq!(errors.as_deref(), Some(expected), "{text}");
        };
        check("", "u:1:1: the file says nothing");
        check("users: {a: {}}", "u:1:9: a user has either \"password\" or \"sha256\"");
        check(
            "users: {a: {password: b, sha256: c}}",
            "u:1:9: a user has either \"password\" or \"sha256\"",
        );
        check("users: {a: {sha256: 12}}", "u:1:21: not 64 hexadecimal digits");
        check(
            "users: {a: {password: b, server-user: c}}",
            "u:1:9: \"server-user\" and \"server-password\" stand together",
        );
        check("users: {a: {password: b, client-max: 1}}", "u:1:26: unknown key \"client-max\"");
        check(
            "users: {a: {pasword: b}}",
            "u:1:9: a user has either \"password\" or \"sha256\"\nu:1:13: unknown key \"pasword\"",
        );
    }
}
