//! Events out of a window on the input: all of the state of a [`Reader`](super::Reader) but the
//! bytes.

use std::borrow::Cow;

use super::{
    Big, Brand, Checksum, Encoding, Entry, Event, Fault, Format, Key, Limits, Part, ReadError,
    Record, Verdict,
    event::shown,
    layout::Layout,
    lzf,
    wire::{Cursor, Stop, Text, TextHead},
};

/// The newest versions that are known.
const REDIS_VERSION_MAX: u16 = 14;
const VALKEY_VERSION_MAX: u16 = 80;

/// Slot ranges in one note of Valkey; there are no more slots.
const RANGES_MAX: u64 = 16_384;

mod opcode {
    pub(super) const SLOT_IMPORT_OR_METADATA: u8 = 243;
    pub(super) const SLOT_INFO: u8 = 244;
    pub(super) const FUNCTION: u8 = 245;
    pub(super) const MODULE_AUX: u8 = 247;
    pub(super) const IDLE: u8 = 248;
    pub(super) const FREQUENCY: u8 = 249;
    pub(super) const AUX: u8 = 250;
    pub(super) const RESIZE_DB: u8 = 251;
    pub(super) const EXPIRE_MS: u8 = 252;
    pub(super) const EXPIRE_S: u8 = 253;
    pub(super) const SELECT_DB: u8 = 254;
    pub(super) const END: u8 = 255;
}

/// How one call ends that is no error.
pub(super) struct Step {
    /// Bytes of the window that are read for good.
    pub(super) used: usize,
    /// How many bytes are missing at least, as far as the input says so.
    pub(super) missing: usize,
}

/// What a call found: None where more bytes are needed, or nothing comes any more. Records are made
/// where the caller wants them: there are so many that each move of one counts.
pub(super) type Found<'a> = Result<Option<Record<'a>>, ReadError>;

/// The checksum of what was read, computed in large pieces.
#[derive(Debug, Default)]
pub(super) struct Sum {
    checksum: Checksum,
    /// How far into the buffer it goes.
    upto: usize,
    /// Nothing more belongs to it.
    closed: bool,
}

impl Sum {
    /// Adds what the buffer holds up to `end`.
    pub(super) fn add_upto(&mut self, end: usize, buffer: &[u8]) {
        if !self.closed {
            self.checksum.add(buffer.get(self.upto..end).unwrap_or_default());
            self.upto = end;
        }
    }

    /// The first bytes of the buffer, all of which were read, were dropped.
    pub(super) fn dropped(&mut self, bytes: usize) {
        self.upto = self.upto.saturating_sub(bytes);
    }
}

#[derive(Debug)]
enum State {
    Header,
    Opcode,
    /// Values of modules that nobody asked for.
    Skip(Layout),
    /// A value in parts: the way through it, and its key for errors.
    Big(Layout),
    BigPlain(u64),
    BigPacked(lzf::Stream),
    Checksum,
    Done,
}

/// What was said of the next key.
#[derive(Debug, Default)]
struct Said {
    offset: Option<u64>,
    expire_at_ms: Option<u64>,
    idle_seconds: Option<u64>,
    frequency: Option<u8>,
    metadata: bool,
}

#[derive(Debug)]
pub(super) struct Parser {
    limits: Limits,
    state: State,
    format: Format,
    /// Bytes before the window.
    offset: u64,
    db: u64,
    said: Said,
    /// The way through the value at hand, and how far it goes: the input may come in many pieces.
    passed: Option<(Layout, usize)>,
    /// The key of a value in parts, for errors.
    big_key: Vec<u8>,
    /// KeyDB names a member in one note and its end in the next.
    member: Option<Vec<u8>>,
    /// Was the input read from its first byte?
    whole: bool,
}

impl Parser {
    pub(super) fn new(limits: Limits) -> Self {
        // Whatever is not in a part is as small as a number or the lengths of a string.
        const WHOLE_BYTES_MIN: usize = 64;
        let whole_bytes_max = limits.whole_bytes_max.max(WHOLE_BYTES_MIN);
        Self {
            limits: Limits { whole_bytes_max, ..limits },
            state: State::Header,
            format: Format::redis(0),
            offset: 0,
            db: 0,
            said: Said::default(),
            passed: None,
            big_key: Vec::new(),
            member: None,
            whole: true,
        }
    }

    pub(super) fn resume(limits: Limits, format: Format, db: u64, offset: u64) -> Self {
        let state = State::Opcode;
        Self { state, format, db, offset, whole: false, ..Self::new(limits) }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Why the input must not end with `rest`, which is not read.
    pub(super) fn ends(&self, rest: &[u8]) -> ReadError {
        let what = match &self.state {
            State::Header => "the magic",
            State::Opcode if self.passed.is_some() => "a value",
            State::Opcode => "the entries",
            State::Skip(_) => "what a module wrote",
            State::Big(_) | State::BigPlain(_) | State::BigPacked(_) => "a value",
            State::Checksum | State::Done => "the checksum",
        };
        let mut error = self.error(rest.len(), Fault::Ends(what));
        error.key = error.key.or_else(|| self.key_of(rest));
        error
    }

    fn error(&self, at: usize, fault: Fault) -> ReadError {
        let key = match &self.state {
            State::Big(_) | State::BigPlain(_) | State::BigPacked(_) => Some(&*self.big_key),
            _ => None,
        };
        ReadError::new(self.offset + at as u64, key, fault)
    }

    /// Reads on to the next event in `buffer` from `start`, where the last call stopped reading;
    /// puts it into `found`, which holds nothing.
    pub(super) fn step<'a>(
        &'a mut self,
        buffer: &'a [u8],
        start: usize,
        sum: &mut Sum,
        found: &mut Found<'a>,
    ) -> Result<Step, ReadError> {
        let mut at = start;
        while !matches!(self.state, State::BigPlain(_) | State::BigPacked(_)) {
            let rest = buffer.get(at..).unwrap_or_default();
            let mut cursor = Cursor::new(rest);
            let result = match &self.state {
                State::Header => self.header(&mut cursor),
                State::Opcode => self.opcode(&mut cursor, found),
                State::Skip(_) => self.skip(&mut cursor),
                State::Big(_) => self.big(&mut cursor),
                State::Checksum => {
                    sum.add_upto(at, buffer);
                    sum.closed = true;
                    self.checksum(&mut cursor, sum.checksum.value())
                }
                State::BigPlain(_) | State::BigPacked(_) | State::Done => Err(Stop::More(0)),
            };
            let used = rest.len() - cursor.rest.len();
            match result {
                Ok(next) => {
                    let mut offset = self.offset;
                    self.offset += used as u64;
                    at += used;
                    if let Some(event) = next {
                        // It began with its opcode, which says nothing on its own.
                        if matches!(event, Event::End(_)) {
                            offset -= self.end_opcode();
                        }
                        *found = Ok(Some(Record { offset, event }));
                    }
                    if !matches!(found, Ok(None)) {
                        return Ok(Step { used: at - start, missing: 0 });
                    }
                }
                Err(Stop::More(missing)) => {
                    self.check_room(rest.len(), missing)?;
                    return Ok(Step { used: at - start, missing });
                }
                Err(Stop::Fault(fault)) => {
                    let mut error = self.error(used, fault);
                    error.key = error.key.or_else(|| self.key_of(rest));
                    return Err(error);
                }
            }
        }
        let mut step = self.big_text(buffer.get(at..).unwrap_or_default(), found)?;
        step.used += at - start;
        Ok(step)
    }

    /// Bytes of END that were read before its event came.
    fn end_opcode(&self) -> u64 {
        u64::from(self.format.version >= 5)
    }

    /// Is what must be in the window at once within the limits?
    fn check_room(&self, there: usize, missing: usize) -> Result<(), ReadError> {
        // Beside the longest unit there are its lengths and what is said before it.
        const BESIDE: usize = 1024;
        let bytes = there.saturating_add(missing);
        let limit = self.limits.unit_bytes_max.max(self.limits.whole_bytes_max);
        if missing > 0 && bytes > limit.saturating_add(BESIDE) {
            let (bytes, limit) = (bytes as u64, limit as u64);
            let fault = Fault::TooLarge { what: "a key or an element", bytes, limit };
            return Err(self.error(0, fault));
        }
        Ok(())
    }

    /// The key of the entry that `rest` begins with.
    fn key_of(&self, rest: &[u8]) -> Option<Vec<u8>> {
        let (byte, rest) = rest.split_first().filter(|_| matches!(self.state, State::Opcode))?;
        Encoding::from_byte(*byte, self.format.brand)?;
        let key = Cursor::new(rest).string().ok()?;
        Some(shown(&key).to_vec())
    }

    fn header<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Option<Event<'a>>, Stop> {
        let magic: [u8; 9] = cursor.array()?;
        let (brand, digits, newest) = match &magic {
            [b'R', b'E', b'D', b'I', b'S', digits @ ..] => {
                (Brand::Redis, digits.as_slice(), REDIS_VERSION_MAX)
            }
            [b'V', b'A', b'L', b'K', b'E', b'Y', digits @ ..] => {
                (Brand::Valkey, digits.as_slice(), VALKEY_VERSION_MAX)
            }
            _ => return Err(Fault::Expected("REDIS or VALKEY and a version").into()),
        };
        let text = String::from_utf8_lossy(digits);
        let version = text.parse().ok().filter(|version| (1..=newest).contains(version));
        let Some(version) = version.filter(|_| digits.iter().all(u8::is_ascii_digit)) else {
            return Err(Fault::Version(text.escape_default().to_string()).into());
        };
        self.format = Format { brand, version };
        self.state = State::Opcode;
        Ok(Some(Event::Header(self.format)))
    }

    /// The next event, where it isn't a value: that is put into `found`.
    fn opcode<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        found: &mut Found<'a>,
    ) -> Result<Option<Event<'a>>, Stop> {
        let byte = cursor.byte()?;
        match byte {
            opcode::EXPIRE_MS => {
                let at = i64::from_le_bytes(cursor.array()?);
                self.say().expire_at_ms = Some(at.max(0) as u64);
            }
            opcode::EXPIRE_S => {
                let at = i32::from_le_bytes(cursor.array()?);
                self.say().expire_at_ms = Some(at.max(0) as u64 * 1000);
            }
            opcode::IDLE => {
                let idle = cursor.length()?;
                self.say().idle_seconds = Some(idle);
            }
            opcode::FREQUENCY => {
                let frequency = cursor.byte()?;
                self.say().frequency = Some(frequency);
            }
            opcode::SLOT_IMPORT_OR_METADATA if self.format.brand == Brand::Redis => {
                let count = cursor.length()?;
                self.say().metadata = true;
                self.state = State::Skip(Layout::metadata(count));
            }
            opcode::SLOT_IMPORT_OR_METADATA => return self.slot_import(cursor).map(Some),
            opcode::SLOT_INFO => {
                let (slot, keys) = (cursor.length()?, cursor.length()?);
                return Ok(Some(Event::SlotInfo { slot, keys, expiring: cursor.length()? }));
            }
            opcode::FUNCTION => return Ok(Some(Event::Function(self.string(cursor)?))),
            opcode::MODULE_AUX => {
                let module = cursor.length()?;
                let _when = (cursor.length()?, cursor.length()?);
                self.state = State::Skip(Layout::module_values());
                return Ok(Some(Event::ModuleAux { module }));
            }
            opcode::AUX => {
                let (name, value) = (self.string(cursor)?, self.string(cursor)?);
                return self.aux(name, value);
            }
            opcode::RESIZE_DB => {
                let keys = cursor.length()?;
                return Ok(Some(Event::ResizeDb { keys, expiring: cursor.length()? }));
            }
            opcode::SELECT_DB => {
                self.db = cursor.length()?;
                return Ok(Some(Event::SelectDb(self.db)));
            }
            opcode::END if self.format.version >= 5 => self.state = State::Checksum,
            opcode::END => {
                self.state = State::Done;
                return Ok(Some(Event::End(Verdict::NoChecksum)));
            }
            _ => {
                let expected = "an opcode or the type of a value";
                let encoding = Encoding::from_byte(byte, self.format.brand)
                    .ok_or(Fault::Found { expected, byte })?;
                self.value(encoding, cursor, found)?;
            }
        }
        Ok(None)
    }

    /// What is said of the next key begins here at the latest.
    fn say(&mut self) -> &mut Said {
        self.said.offset.get_or_insert(self.offset);
        &mut self.said
    }

    fn slot_import<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Event<'a>, Stop> {
        let job = self.string(cursor)?;
        let count = cursor.length()?;
        if count > RANGES_MAX {
            return Err(Fault::Expected("how many ranges of slots follow").into());
        }
        let range = |_| Ok((cursor.length()?, cursor.length()?));
        let ranges = (0..count).map(range).collect::<Result<_, Stop>>()?;
        Ok(Event::SlotImport { job, ranges })
    }

    fn aux<'a>(
        &mut self,
        name: Cow<'a, [u8]>,
        value: Cow<'a, [u8]>,
    ) -> Result<Option<Event<'a>>, Stop> {
        match (&*name, self.member.take()) {
            (b"keydb-subexpire-key", _) => {
                self.member = Some(value.into_owned());
                Ok(None)
            }
            (b"keydb-subexpire-when", Some(member)) => {
                let expire_at_ms = std::str::from_utf8(&value).ok().and_then(|at| at.parse().ok());
                let expire_at_ms = expire_at_ms.ok_or(Fault::Expected("when a member ends"))?;
                Ok(Some(Event::MemberExpires { member: member.into(), expire_at_ms }))
            }
            _ => Ok(Some(Event::Aux { name, value })),
        }
    }

    /// A string that is needed whole.
    fn string<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Cow<'a, [u8]>, Stop> {
        let text = cursor.text()?;
        Ok(self.decode(text)?)
    }

    fn decode<'a>(&self, text: Text<'a>) -> Result<Cow<'a, [u8]>, Fault> {
        let (bytes, limit) = (text.length() as u64, self.limits.unit_bytes_max as u64);
        if bytes > limit {
            return Err(Fault::TooLarge { what: "a string", bytes, limit });
        }
        text.decode()
    }

    fn value<'a>(
        &mut self,
        encoding: Encoding,
        cursor: &mut Cursor<'a>,
        found: &mut Found<'a>,
    ) -> Result<(), Stop> {
        let mut after_name = *cursor;
        let name = after_name.text()?;
        let value = after_name.rest;
        let (mut layout, passed) = match self.passed.take() {
            Some(passed) => passed,
            None => (Layout::new(encoding), 0),
        };
        let mut ahead = Cursor::new(value.get(passed..).unwrap_or_default());
        let length = loop {
            layout.run(self.limits.whole_bytes_max, &mut ahead);
            let before = ahead.rest.len();
            let stop = layout.next(&mut ahead);
            let length = value.len() - ahead.rest.len();
            match stop {
                Ok(Some(_)) if length <= self.limits.whole_bytes_max => {}
                Ok(Some(_)) => break None,
                Ok(None) => break Some(length),
                Err(Stop::More(missing)) => {
                    if value.len().saturating_add(missing) > self.limits.whole_bytes_max {
                        break None;
                    }
                    self.passed = Some((layout, value.len() - before));
                    return Err(Stop::More(missing));
                }
                Err(Stop::Fault(fault)) => {
                    *cursor = ahead;
                    return Err(fault.into());
                }
            }
        };
        // A value that is not whole is parsed again from its beginning, in parts.
        let mut value = Cursor::new(value);
        let start = if length.is_none() { self.start_big(encoding, &mut value)? } else { None };
        *cursor = after_name;
        let name = self.decode(name)?;
        let raw = length.map(|length| value.take(length)).transpose()?;
        *cursor = value;
        let said = std::mem::take(&mut self.said);
        let offset = said.offset.unwrap_or(self.offset);
        let key = |name| Key {
            db: self.db,
            name,
            expire_at_ms: said.expire_at_ms,
            idle_seconds: said.idle_seconds,
            frequency: said.frequency,
            encoding,
            metadata_dropped: said.metadata,
        };
        if let Some(raw) = raw {
            let event = Event::Entry(Entry { key: key(name), raw });
            *found = Ok(Some(Record { offset, event }));
            return Ok(());
        }
        self.big_key.clear();
        self.big_key.extend_from_slice(shown(&name));
        let (state, text_bytes) = match start {
            Some((state, bytes)) => (state, Some(bytes)),
            None => (State::Big(Layout::new(encoding)), None),
        };
        let event = Event::Big(Big { key: key(name), text_bytes });
        self.state = state;
        *found = Ok(Some(Record { offset, event }));
        Ok(())
    }

    /// How a string is read in parts, and its length; None for other values.
    fn start_big(
        &self,
        encoding: Encoding,
        value: &mut Cursor<'_>,
    ) -> Result<Option<(State, u64)>, Stop> {
        if encoding != Encoding::String {
            return Ok(None);
        }
        Ok(match value.text_head()? {
            TextHead::Plain(length) => Some((State::BigPlain(length), length)),
            TextHead::Packed { packed, length } => {
                let limit = self.limits.unit_bytes_max as u64;
                if length > limit {
                    let what = "a string";
                    return Err(Fault::TooLarge { what, bytes: length, limit }.into());
                }
                Some((State::BigPacked(lzf::Stream::new(packed, length)), length))
            }
            TextHead::Integer(length) => return Err(Stop::More(length)),
        })
    }

    /// The next units of a value, as many as are there.
    fn big<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Option<Event<'a>>, Stop> {
        let State::Big(layout) = &mut self.state else { return Ok(None) };
        let part = *cursor;
        loop {
            layout.run(self.limits.whole_bytes_max, cursor);
            let mut ahead = *cursor;
            let length = part.rest.len() - cursor.rest.len();
            match layout.next(&mut ahead) {
                Ok(Some(_)) => *cursor = ahead,
                Ok(None) if length == 0 => {
                    self.state = State::Opcode;
                    return Ok(Some(Event::BigEnd));
                }
                Err(Stop::Fault(fault)) => {
                    *cursor = ahead;
                    return Err(fault.into());
                }
                Err(more) if length == 0 => return Err(more),
                Ok(None) | Err(Stop::More(_)) => break,
            }
            if part.rest.len() - cursor.rest.len() >= self.limits.whole_bytes_max {
                break;
            }
        }
        let length = part.rest.len() - cursor.rest.len();
        let raw = part.rest.get(..length).unwrap_or_default();
        Ok(Some(Event::Part(Part::Raw(raw))))
    }

    /// The next bytes of a string.
    fn big_text<'a>(
        &'a mut self,
        window: &'a [u8],
        found: &mut Found<'a>,
    ) -> Result<Step, ReadError> {
        let part_max = self.limits.whole_bytes_max;
        let offset = self.offset;
        let done = match &self.state {
            State::BigPlain(left) => *left == 0,
            State::BigPacked(stream) => stream.is_done(),
            _ => true,
        };
        if done {
            self.state = State::Opcode;
            *found = Ok(Some(Record { offset, event: Event::BigEnd }));
            return Ok(Step { used: 0, missing: 0 });
        }
        let (used, text) = match &mut self.state {
            State::BigPlain(left) => {
                let length = (*left).min(part_max as u64).min(window.len() as u64) as usize;
                *left -= length as u64;
                (length, window.get(..length).unwrap_or_default())
            }
            State::BigPacked(stream) => stream
                .unpack(window, part_max)
                .map_err(|fault| ReadError::new(offset, Some(&self.big_key), fault))?,
            _ => (0, [].as_slice()),
        };
        self.offset += used as u64;
        if !text.is_empty() {
            *found = Ok(Some(Record { offset, event: Event::Part(Part::Text(text)) }));
        }
        Ok(Step { used, missing: usize::from(used == 0) })
    }

    /// Values of modules, one after the other.
    fn skip<'a>(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<Event<'a>>, Stop> {
        let State::Skip(layout) = &mut self.state else { return Ok(None) };
        let mut ahead = *cursor;
        if layout.next(&mut ahead)?.is_none() {
            self.state = State::Opcode;
        }
        *cursor = ahead;
        Ok(None)
    }

    fn checksum<'a>(
        &mut self,
        cursor: &mut Cursor<'_>,
        computed: u64,
    ) -> Result<Option<Event<'a>>, Stop> {
        let stored = cursor.u64()?;
        self.state = State::Done;
        Ok(Some(Event::End(match stored {
            0 => Verdict::NoChecksum,
            _ if !self.whole => Verdict::Unknown,
            _ if stored == computed => Verdict::Matches,
            _ => Verdict::Differs { stored, computed },
        })))
    }
}
