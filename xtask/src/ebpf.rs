//! `cargo xtask ebpf`: builds the BPF programs of `ebpf/`, and tells whether the objects in `ebpf/objects/` are those.
//!
//! The objects are committed, so that `cargo build` needs no BPF toolchain. BUILDINFO, beside them, says what they were made
//! of and with; a test compares that with the sources, and needs no such toolchain either.

mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::tools;
use toolchain::Toolchain;

/// The object, as cargo names what it builds.
const PROGRAM: &str = "proxyd-ebpf";

/// Where the sources are, from the repository's root.
const SOURCES: [&str; 4] = [
    "ebpf/Cargo.toml",
    "ebpf/Cargo.lock",
    "ebpf/common",
    "ebpf/src",
];

/// What to do with the programs.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Build the objects, with their BUILDINFO.
    Build,
    /// Build them anew, and compare with those that are committed: byte for byte, if they were made with this toolchain.
    Verify,
}

/// Runs one of the commands.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Build => build(),
        Command::Verify => verify(),
    }
}

fn build() -> anyhow::Result<()> {
    let toolchain = Toolchain::get()?;
    let object = toolchain.build(PROGRAM)?;
    fs::write(committed(), object)?;
    fs::write(build_info(), info(&sources_hash()?, &toolchain))?;
    println!("{} is up to date", committed().display());
    Ok(())
}

/// Compares what is committed with what its sources come to.
///
/// # Errors
/// That they differ, or that the sources cannot be built. Without a toolchain it says NOT RUN.
pub(crate) fn verify() -> anyhow::Result<()> {
    check_sources()?;
    let toolchain = match Toolchain::get() {
        Ok(toolchain) => toolchain,
        Err(error) => {
            println!("NOT RUN: the BPF objects were not built anew: {error:#}");
            return Ok(());
        }
    };
    let object = toolchain.build(PROGRAM)?;
    let expected = info(&sources_hash()?, &toolchain);
    let committed_info = fs::read_to_string(build_info())?;
    if committed_info != expected {
        println!(
            "NOT RUN: comparison byte for byte: the object was built with\n{committed_info}and this toolchain is\n{expected}"
        );
        return Ok(());
    }
    let is_same = fs::read(committed())? == object;
    ensure!(
        is_same,
        "ebpf/objects/{PROGRAM}.o is not what its sources come to with the same toolchain; run: cargo xtask ebpf build"
    );
    println!("ebpf/objects/{PROGRAM}.o is what its sources come to, byte for byte");
    Ok(())
}

/// Makes sure that the objects were made of the sources as they are.
fn check_sources() -> anyhow::Result<()> {
    let info = fs::read_to_string(build_info()).context("there is no ebpf/objects/BUILDINFO")?;
    let made_of = info.lines().find_map(|line| line.strip_prefix("sources: "));
    let now = sources_hash()?;
    if made_of != Some(&now) {
        bail!(
            "the objects in ebpf/objects are of other sources than those in ebpf; run: cargo xtask ebpf build"
        );
    }
    Ok(())
}

fn info(sources: &str, toolchain: &Toolchain) -> String {
    format!("sources: {sources}\n{toolchain}")
}

fn committed() -> PathBuf {
    let file = format!("ebpf/objects/{PROGRAM}.o");
    tools::root().join(file)
}

fn build_info() -> PathBuf {
    tools::root().join("ebpf/objects/BUILDINFO")
}

/// The hash of all sources, with their names.
fn sources_hash() -> anyhow::Result<String> {
    let root = tools::root();
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(&root)?.to_string_lossy().into_owned();
        let text = fs::read(&file).with_context(|| format!("cannot read {name}"))?;
        for part in [name.as_bytes(), &text] {
            hash.update(u64::try_from(part.len())?.to_be_bytes());
            hash.update(part);
        }
    }
    let digits = hash.finalize();
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever changes the programs has to build them.
    #[test]
    fn objects_are_of_these_sources() {
        check_sources().unwrap();
        assert!(fs::read(committed()).unwrap().starts_with(b"\x7fELF"));
    }
}
