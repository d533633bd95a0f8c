//! Reads a Rust file as text, well enough to say which paths it names: no parser, no dependencies.
//!
//! Comments and strings are told from code first, at unchanged offsets; then code is cut into words, and words into paths.
//! `use` trees are flattened and names are followed through them, so `use std::time; time::Instant::now()` is seen.

use std::collections::BTreeMap;

/// A Rust file. `code` and `comments` are as long as the file, each with spaces where the other (or a string) is.
pub(super) struct Source {
    pub(super) code: String,
    pub(super) comments: String,
    /// Where the tests module at the end begins; the length of the file if there is none.
    pub(super) tests_start: usize,
}

/// A path named in the code, names from `use` followed, such as `["std", "time", "Instant"]`.
#[derive(Debug, PartialEq)]
pub(super) struct Path<'a> {
    pub(super) segments: Vec<&'a str>,
    pub(super) offset: usize,
}

#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    offset: usize,
}

impl Source {
    pub(super) fn new(text: &str) -> Self {
        let (code, comments) = split(text);
        let tests_start = tests_start(&code);
        Self {
            code,
            comments,
            tests_start,
        }
    }

    /// The words and signs of the code, with their offsets.
    pub(super) fn words(&self) -> impl Iterator<Item = (&str, usize)> {
        tokens(&self.code)
            .into_iter()
            .map(|token| (token.text, token.offset))
    }

    /// Every path in the code: those of `use`, and those of two segments or more elsewhere.
    pub(super) fn paths(&self) -> Vec<Path<'_>> {
        let tokens = tokens(&self.code);
        let mut names = BTreeMap::new();
        let mut paths = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            // `use<'a>` in a return type is no import.
            if tokens[at].text == "use" && tokens.get(at + 1).is_some_and(|next| next.text != "<") {
                at = use_tree(&tokens, at + 1, &[], &mut names, &mut paths);
            } else if is_word(tokens[at].text) {
                let path = expression(&tokens, &mut at);
                if path.segments.len() > 1 {
                    paths.push(path);
                }
            } else {
                at += 1;
            }
        }
        for path in &mut paths {
            follow(path, &names);
        }
        paths
    }
}

/// The line of an offset, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// Whether a token is an identifier, keyword or number, rather than a sign.
pub(super) fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Parses one `use` tree from `at`, notes what it imports, and says where it ended.
fn use_tree<'a>(
    tokens: &[Token<'a>],
    mut at: usize,
    prefix: &[&'a str],
    names: &mut BTreeMap<&'a str, Vec<&'a str>>,
    paths: &mut Vec<Path<'a>>,
) -> usize {
    let mut segments = prefix.to_vec();
    let mut name = None;
    let start = at;
    while let Some(token) = tokens.get(at) {
        match token.text {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(tokens, at, &segments, names, paths);
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text != "}"));
                }
                return at + 1;
            }
            "as" => {
                at += 1;
                name = tokens.get(at).map(|token| token.text);
            }
            "self" if !prefix.is_empty() => {}
            "*" => segments.push("*"),
            word if is_word(word) => segments.push(word),
            "::" => {}
            _ => break,
        }
        at += 1;
    }
    if let (Some(last), Some(first)) = (segments.last(), tokens.get(start)) {
        names.insert(name.unwrap_or(last), segments.clone());
        paths.push(Path {
            segments,
            offset: first.offset,
        });
    }
    at
}

fn expression<'a>(tokens: &[Token<'a>], at: &mut usize) -> Path<'a> {
    let mut path = Path {
        segments: vec![tokens[*at].text],
        offset: tokens[*at].offset,
    };
    *at += 1;
    while let [separator, word, ..] = &tokens[*at..] {
        if separator.text != "::" || !is_word(word.text) {
            break;
        }
        path.segments.push(word.text);
        *at += 2;
    }
    path
}

/// Replaces a first segment that a `use` brought in by where it came from.
fn follow<'a>(path: &mut Path<'a>, names: &BTreeMap<&'a str, Vec<&'a str>>) {
    // Two steps are common (`use std::time; use time::Instant;`); a cycle (`use log; log::x`) must end.
    for _ in 0..4 {
        let Some(origin) = names
            .get(path.segments[0])
            .filter(|origin| origin[0] != path.segments[0])
        else {
            break;
        };
        path.segments.splice(..1, origin.iter().copied());
    }
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let length = if is_word(rest) {
            // `r#type` is the word `type`; its `r#` is read as a word and a sign before it.
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push(Token {
                text: &rest[..length],
                offset: code.len() - rest.len(),
            });
        }
        rest = &rest[length..];
    }
    tokens
}

/// Where a `#[cfg(test)]` module that begins a line begins. Clippy's `items_after_test_module` keeps it last.
fn tests_start(code: &str) -> usize {
    let starts = code.match_indices("#[cfg(test)]").map(|(start, _)| start);
    let mut modules = starts.filter(|start| {
        let begins_line = *start == 0 || code.as_bytes()[start - 1] == b'\n';
        let mut item = tokens(&code[*start..])
            .into_iter()
            .map(|token| token.text)
            .skip(7);
        begins_line
            && item
                .by_ref()
                .find(|text| *text == "mod" || *text == ";" || *text == "{")
                == Some("mod")
            && { item.nth(1) == Some("{") }
    });
    modules.next().unwrap_or(code.len())
}

/// The file's code and its comments, at unchanged offsets; strings are in neither.
fn split(text: &str) -> (String, String) {
    let blank = |text: &str| {
        text.chars()
            .map(|c| {
                if c == '\n' {
                    "\n".into()
                } else {
                    " ".repeat(c.len_utf8())
                }
            })
            .collect()
    };
    let (mut code, mut comments) = (String::new(), String::new());
    let mut rest = text;
    let mut before = ' ';
    while !rest.is_empty() {
        let (kind, length) = piece(rest, before);
        let (this, after) = rest.split_at(length);
        let blanked: String = blank(this);
        code.push_str(if kind == Kind::Code { this } else { &blanked });
        comments.push_str(if kind == Kind::Comment {
            this
        } else {
            &blanked
        });
        before = this.chars().next_back().unwrap_or(' ');
        rest = after;
    }
    (code, comments)
}

#[derive(PartialEq)]
enum Kind {
    Code,
    Comment,
    Text,
}

/// The kind and length of what `rest` begins with; `before` is the character in front of it.
fn piece(rest: &str, before: char) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, block_comment(rest));
    }
    if rest.starts_with('"') {
        return (Kind::Text, string(rest));
    }
    let in_word = before.is_alphanumeric() || before == '_';
    if !in_word && let Some(length) = raw_string(rest) {
        return (Kind::Text, length);
    }
    if let Some(length) = character(rest) {
        return (Kind::Text, length);
    }
    (Kind::Code, rest.chars().next().map_or(0, char::len_utf8))
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let (step, change) = match rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    rest.len()
}

/// The length of a raw string, prefix and all (`r`, `br` or `cr`, and any number of `#`).
fn raw_string(rest: &str) -> Option<usize> {
    let prefix = rest
        .strip_prefix(['b', 'c'])
        .unwrap_or(rest)
        .strip_prefix('r')?;
    let hashes = prefix.len() - prefix.trim_start_matches('#').len();
    let body = prefix[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(rest.len() - body.len() + length)
}

/// The length of a character literal; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        let escape = body[1..].chars().next()?.len_utf8();
        return body[1 + escape..]
            .find('\'')
            .map(|at| 1 + 1 + escape + at + 1);
    }
    body[first.len_utf8()..]
        .starts_with('\'')
        .then_some(first.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let source = Source::new(text);
        assert_eq!(source.code.len(), text.len());
        let paths: Vec<_> = source
            .paths()
            .into_iter()
            .map(|path| path.segments.join("::"))
            .collect();
        assert_eq!(paths, expected, "{text}");
    }

    #[test]
    fn use_trees_are_flattened() {
        check("use a;", &["a"]);
        check("pub(crate) use a::b::C;", &["a::b::C"]);
        check(
            "use a::{b, c::{self, D as E},\n  f::*,\n};\nuse g::h;",
            &["a::b", "a::c", "a::c::D", "a::f::*", "g::h"],
        );
        check("use {a::b, c};", &["a::b", "c"]);
        check("use ::a::b;", &["a::b"]);
        check(
            "use self::a; use super::{b, super::c};",
            &["self::a", "super::b", "super::super::c"],
        );
        check("fn f<'a>() -> impl A + use<'a> { a::b() }", &["a::b"]);
    }

    #[test]
    fn paths_in_expressions_and_attributes_are_seen() {
        check(
            "fn f() { let x: a::B<c::D> = a::b::<u8>(); }",
            &["a::B", "c::D", "a::b"],
        );
        check("#[a::b] fn f() { $crate::c!() }", &["a::b", "crate::c"]);
        check("x.y.z(1..2)", &[]);
    }

    #[test]
    fn names_are_followed_to_where_they_come_from() {
        check(
            "use std::time; fn f() { time::Instant::now() }",
            &["std::time", "std::time::Instant::now"],
        );
        check("use a as b; b::c()", &["a", "a::c"]);
        check("use log; log::x()", &["log", "log::x"]);
    }

    #[test]
    fn comments_strings_and_characters_are_not_code() {
        check("// a::b\n/* a /* c::d */ e::f */ /// g::h", &[]);
        check(
            r##" "a::b \" c::d" r"a::\" r#"e::"f"# b"g::h" br#"i::j"# "##,
            &[],
        );
        check(
            "'\"' a::b '\\'' c::d '\\u{1f}' &'a e::f '\"'",
            &["a::b", "c::d", "e::f"],
        );
    }

    #[test]
    fn comments_keep_their_place() {
        let source = Source::new("é; // note\n\"// no\" x");
        assert_eq!(source.comments.trim(), "// note");
        assert_eq!(line_of(&source.code, source.code.find('x').unwrap()), 2);
    }

    #[test]
    fn tests_module_at_the_end_is_found() {
        let start = |text: &str| Source::new(text).tests_start;
        assert_eq!(
            start("fn f() {}\n#[cfg(test)]\nmod tests { use super::*; }"),
            10
        );
        assert_eq!(
            start("fn f() {}\n#[cfg(test)]\n#[expect(x)]\nmod tests {}"),
            10
        );
        assert_eq!(start("#[cfg(test)]\nuse a::b;\nfn f() {}"), 32);
        assert_eq!(start("#[cfg(test)]\nmod tests;\n"), 24);
    }
}
