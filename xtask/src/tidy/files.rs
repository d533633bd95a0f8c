//! Rules about single files: their size, their words, their place in the documents.

use super::source::{Source, line_of};
use super::{Problem, Tree};

const MAX_LINES: usize = 500;
const MAX_ARCHITECTURE_LINES: usize = 150;

/// Files tell one idea each. A tests module at the end does not count.
pub(super) fn length(tree: &Tree) -> Vec<Problem> {
    let lengths = tree
        .rust()
        .map(|(path, text, source)| (path, text[..source.tests_start].lines().count()));
    let long = lengths.filter(|(_, lines)| *lines > MAX_LINES);
    long.map(|(path, lines)| Problem::file(path, format!("{lines} lines, the most is {MAX_LINES}")))
        .collect()
}

/// Every module says what it is for.
pub(super) fn module_docs(tree: &Tree) -> Vec<Problem> {
    let bare = tree.rust().filter(|(_, text, _)| !text.starts_with("//!"));
    bare.map(|(path, ..)| Problem::at(path, 1, "must begin with //!"))
        .collect()
}

/// Nothing is left for later in the code, and no test is switched off.
pub(super) fn unfinished(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text, source) in tree.rust() {
        let words = source.comments.split(|c: char| !c.is_alphanumeric());
        for word in words.filter(|word| ["TODO", "FIXME"].contains(word)) {
            let offset = word.as_ptr() as usize - source.comments.as_ptr() as usize;
            problems.push(Problem::at(
                path,
                line_of(text, offset),
                format!("{word}: do it, or open an issue"),
            ));
        }
        for code in ["todo!", "unimplemented!", "#[ignore"] {
            let places = source.code.match_indices(code);
            problems.extend(places.map(|(at, _)| {
                Problem::at(path, line_of(text, at), format!("{code} is unfinished"))
            }));
        }
    }
    problems
}

/// Tests wait for a condition with a deadline.
pub(super) fn sleeping_tests(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text, source) in tree.rust() {
        let sleeps = source.paths().into_iter().filter(|named| {
            is_test(path, source, named.offset)
                && matches!(named.segments[..], [.., "thread" | "time", "sleep"])
        });
        let message = "tests do not sleep: wait for a condition with a deadline";
        problems
            .extend(sleeps.map(|sleep| Problem::at(path, line_of(text, sleep.offset), message)));
    }
    problems
}

/// The files with unsafe code.
const UNSAFE: &[&str] = &["agent/src/host/memory.rs"];

/// Unsafe code is kept in few files, each of which is an exception with a reason.
pub(super) fn unsafe_code(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    // Programs for the kernel are given pointers, and both sides write plain bytes.
    let is_exempt = |path: &str| UNSAFE.contains(&path) || path.starts_with("ebpf/");
    let others = tree.rust().filter(|(path, ..)| !is_exempt(path));
    for (path, text, source) in others {
        let places = source.words().filter(|(word, _)| *word == "unsafe");
        problems.extend(places.map(|(_, at)| {
            Problem::at(
                path,
                line_of(text, at),
                "unsafe is not allowed in this file",
            )
        }));
    }
    problems
}

/// No line ends in a space or a tab.
pub(super) fn whitespace(tree: &Tree) -> Vec<Problem> {
    let lines = tree
        .0
        .iter()
        .flat_map(|(path, file)| (1..).zip(file.text.lines()).map(move |line| (path, line)));
    let bad = lines.filter(|(_, (_, line))| line.ends_with([' ', '\t', '\r']));
    bad.map(|(path, (number, _))| Problem::at(path, number, "space at the end of the line"))
        .collect()
}

/// Builds are the same everywhere: the lock file is there and git does not ignore it.
pub(super) fn lock_file(tree: &Tree) -> Vec<Problem> {
    let ignored = tree
        .text(".gitignore")
        .is_some_and(|text| text.lines().any(|line| line.contains("Cargo.lock")));
    let committed = tree.has("Cargo.lock") && !ignored;
    if committed {
        Vec::new()
    } else {
        vec![Problem::file("Cargo.lock", "must be committed")]
    }
}

/// README and ARCHITECTURE are there; the second is short and its code map names what exists.
pub(super) fn documents(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for path in ["README.md", "ARCHITECTURE.md"] {
        if !tree.has(path) {
            problems.push(Problem::file(path, "is missing"));
        }
    }
    let Some(text) = tree.text("ARCHITECTURE.md") else {
        return problems;
    };
    let problem = |line, message| Problem {
        path: "ARCHITECTURE.md".to_owned(),
        line,
        message,
    };
    let lines = text.lines().count();
    if lines >= MAX_ARCHITECTURE_LINES {
        problems.push(problem(
            None,
            format!("{lines} lines, must be fewer than {MAX_ARCHITECTURE_LINES}"),
        ));
    }
    let map = code_map(text);
    if map.is_empty() {
        problems.push(problem(
            None,
            "has no section \"Code map\" with `paths` in it".to_owned(),
        ));
    }
    let gone = map.iter().filter(|(_, path)| !tree.has(path));
    problems.extend(
        gone.map(|(line, path)| problem(Some(*line), format!("names {path}, which is gone"))),
    );
    problems
}

/// The paths (in backticks, with a `/` or ending in `.rs`) of the section "Code map", and their lines.
fn code_map(text: &str) -> Vec<(usize, &str)> {
    let level = |line: &str| line.find(|c| c != '#').filter(|level| *level > 0);
    let mut inside = None;
    let mut paths = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(level) = level(line) {
            if line.to_lowercase().contains("code map") {
                inside = Some(level);
            } else if inside.is_some_and(|outer| level <= outer) {
                inside = None;
            }
        }
        if inside.is_some() {
            let quoted = line.split('`').skip(1).step_by(2);
            let is_path = |text: &&str| !text.starts_with('/') && !text.contains(' ');
            let paths_here = quoted
                .filter(is_path)
                .filter(|text| text.contains('/') || text.ends_with(".rs"));
            paths.extend(paths_here.map(|path| (number, path)));
        }
    }
    paths
}

fn is_test(path: &str, source: &Source, offset: usize) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || offset >= source.tests_start
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_rule, tree};
    use super::*;

    const FILE: &str = "agent/src/model/a.rs";

    #[test]
    fn long_files_fail_but_for_their_tests() {
        let lines = |count| "x\n".repeat(count);
        check_rule(length, FILE, &lines(500), &[]);
        check_rule(
            length,
            FILE,
            &lines(501),
            &["agent/src/model/a.rs: 501 lines, the most is 500"],
        );
        check_rule(
            length,
            FILE,
            &format!("{}#[cfg(test)]\nmod tests {{\n{}}}", lines(500), lines(500)),
            &[],
        );
    }

    #[test]
    fn modules_begin_with_their_docs() {
        check_rule(module_docs, FILE, "//! A.\n", &[]);
        check_rule(
            module_docs,
            FILE,
            "use a::b;\n//! A.\n",
            &["agent/src/model/a.rs:1: must begin with //!"],
        );
    }

    #[test]
    fn unfinished_code_is_found() {
        let check = |text, expected: &[_]| check_rule(unfinished, FILE, text, expected);
        check(
            "x;\n// TODO: more",
            &["agent/src/model/a.rs:2: TODO: do it, or open an issue"],
        );
        check(
            "/* FIXME */",
            &["agent/src/model/a.rs:1: FIXME: do it, or open an issue"],
        );
        check(
            "fn f() { todo!() }",
            &["agent/src/model/a.rs:1: todo! is unfinished"],
        );
        check(
            "#[ignore = \"slow\"]\nfn f() {}",
            &["agent/src/model/a.rs:1: #[ignore is unfinished"],
        );
        check("f(\"TODO todo! #[ignore]\") // TODOS", &[]);
    }

    #[test]
    fn tests_that_sleep_are_found() {
        let check = |path, text, count| {
            assert_eq!(
                sleeping_tests(&tree(&[(path, text)])).len(),
                count,
                "{text}"
            );
        };
        check("tests/src/agent.rs", "std::thread::sleep(d);", 1);
        check(
            "tests/tests/nodeport.rs",
            "use tokio::time; fn f() { time::sleep(d) }",
            1,
        );
        check("tests/tests/nodeport.rs", "use tokio::time::timeout;", 0);
        check(FILE, "fn f() { std::thread::sleep(d) }", 0);
        check(
            FILE,
            "\n#[cfg(test)]\nmod tests { fn f() { std::thread::sleep(d) } }",
            1,
        );
    }

    #[test]
    fn unsafe_code_is_found() {
        check_rule(
            unsafe_code,
            FILE,
            "unsafe { f() }",
            &["agent/src/model/a.rs:1: unsafe is not allowed in this file"],
        );
        check_rule(
            unsafe_code,
            FILE,
            "#![deny(unsafe_code)] // unsafe\nf(\"unsafe\")",
            &[],
        );
        check_rule(unsafe_code, UNSAFE[0], "unsafe { f() }", &[]);
    }

    #[test]
    fn spaces_at_the_end_of_lines_are_found() {
        check_rule(
            whitespace,
            "README.md",
            "a\nb \n",
            &["README.md:2: space at the end of the line"],
        );
        check_rule(whitespace, "README.md", "a\n\n  b\n", &[]);
    }

    #[test]
    fn lock_file_is_committed() {
        assert_eq!(lock_file(&tree(&[])).len(), 1);
        assert_eq!(
            lock_file(&tree(&[
                ("Cargo.lock", ""),
                (".gitignore", "/target\nCargo.lock\n")
            ]))
            .len(),
            1
        );
        assert_eq!(
            lock_file(&tree(&[("Cargo.lock", ""), (".gitignore", "/target\n")])).len(),
            0
        );
    }

    #[test]
    fn documents_are_there_short_and_right() {
        let check = |text: &str, expected: &[&str]| {
            let files = [("README.md", ""), ("ARCHITECTURE.md", text), (FILE, "")];
            let found: Vec<_> = documents(&tree(&files))
                .iter()
                .map(|problem| problem.message.clone())
                .collect();
            assert_eq!(found, expected, "{text}");
        };
        check(
            "`not/here`\n## Code map\n`agent/src/model/` `agent/src/model/a.rs` `/etc/x` `Plan`\n## Next\n`nor/here`",
            &[],
        );
        check(
            "## Code map\n### Agent\n`agent/src/b.rs`",
            &["names agent/src/b.rs, which is gone"],
        );
        check(
            "# Architecture",
            &["has no section \"Code map\" with `paths` in it"],
        );
        check(
            &format!("# Code map\n`agent/`\n{}", "\n".repeat(148)),
            &["150 lines, must be fewer than 150"],
        );
        assert_eq!(documents(&tree(&[])).len(), 2);
    }
}
