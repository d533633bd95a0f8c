//! What builds BPF programs: a rustc that takes unstable options, with the sources of its library, and bpf-linker for the
//! LLVM of that rustc. Found, or installed where it may be: Debian's packages, or a nightly of rustup.

use std::env;
use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::programs;
use crate::tools::{self, cargo, command};

const LINKER_VERSION: &str = "0.13.0";

/// A Rust compiler with its sources, outside of rustup.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

const TARGET: &str = "bpfel-unknown-none";

/// Everything that is needed, ready to be used.
pub(super) struct Toolchain {
    rustc: PathBuf,
    /// What rustc says of itself: its version and that of its LLVM.
    version: String,
    llvm: String,
    linker: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rustc: {}", self.version)?;
        writeln!(f, "LLVM: {}", self.llvm)?;
        writeln!(f, "bpf-linker: {LINKER_VERSION}")
    }
}

impl Toolchain {
    /// Finds everything, and installs what is missing.
    pub(super) fn get() -> anyhow::Result<Self> {
        let rustc = rustc()?;
        let says = output(command(&rustc, &["-vV"]))?;
        let version = says.lines().next().unwrap_or_default().to_owned();
        let llvm = says.lines().find_map(|l| l.strip_prefix("LLVM version: "));
        let llvm = llvm.context("rustc does not name its LLVM")?.to_owned();
        let linker = linker(&rustc, &llvm)?;
        Ok(Self {
            rustc,
            version,
            llvm,
            linker,
        })
    }

    /// Builds a program, and returns it without what only debuggers need. The same sources give the same bytes in any
    /// directory.
    pub(super) fn build(&self, program: &str) -> anyhow::Result<Vec<u8>> {
        let target_dir = tools::target_dir()?.join("ebpf");
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
        let flags = [
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
            remap(&tools::root(), "proxyd"),
            remap(
                &home.context("neither CARGO_HOME nor HOME is set")?,
                "cargo",
            ),
            remap(&sysroot(&self.rustc)?, "rust"),
        ];
        let mut build = cargo(&[
            "build",
            "--manifest-path",
            "ebpf/Cargo.toml",
            "--locked",
            "--release",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
            "--target-dir",
        ]);
        build.arg(&target_dir);
        for profile in ["DEV", "RELEASE"] {
            for setting in ["DEBUG", "LTO", "OPT_LEVEL", "CODEGEN_UNITS"] {
                build.env_remove(format!("CARGO_PROFILE_{profile}_{setting}"));
            }
        }
        build
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTC_WRAPPER")
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        tools::run(&mut build)?;
        let built = target_dir.join(TARGET).join("release").join(program);
        let stripped = built.with_extension("stripped");
        let mut strip = objcopy()?;
        strip.arg("--strip-debug").arg(&built).arg(&stripped);
        tools::run(&mut strip)?;
        fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
    }
}

/// A rustc with its sources: Debian's, installed where that may be done, or a nightly of rustup.
fn rustc() -> anyhow::Result<PathBuf> {
    let debian = PathBuf::from(DEBIAN_RUSTC);
    if has_sources(&debian) {
        return Ok(debian);
    }
    if let Ok(nightly) = output(command(
        "rustup",
        &["which", "--toolchain", "nightly", "rustc"],
    )) {
        let nightly = PathBuf::from(nightly.trim());
        if has_sources(&nightly) {
            return Ok(nightly);
        }
    }
    let packages = DEBIAN_PACKAGES.join(" ");
    if !programs::may_install()? {
        bail!(
            "no rustc that builds BPF programs; install one: rustup toolchain install nightly --component rust-src; \
             on Debian: apt-get install {packages}"
        );
    }
    programs::install(&packages)?;
    Ok(debian)
}

fn has_sources(rustc: &Path) -> bool {
    let sources = "lib/rustlib/src/rust/library/core/Cargo.toml";
    sysroot(rustc).is_ok_and(|sysroot| sysroot.join(sources).is_file())
}

fn sysroot(rustc: &Path) -> anyhow::Result<PathBuf> {
    let sysroot = output(command(rustc, &["--print", "sysroot"]))?;
    Ok(sysroot.trim().into())
}

/// bpf-linker for this LLVM, in `target/tools`, where it is installed if it is not there.
fn linker(rustc: &Path, llvm: &str) -> anyhow::Result<PathBuf> {
    let major = llvm.split('.').next().unwrap_or_default();
    let dir = tools::root().join(format!("target/tools/bpf-linker-{LINKER_VERSION}-{major}"));
    let linker = dir.join("bin/bpf-linker");
    if linker.is_file() {
        return Ok(linker);
    }
    let feature = format!("llvm-{major}");
    let mut install = tools::cargo_install("bpf-linker", LINKER_VERSION, &dir);
    install
        .args(["--no-default-features", "--features", &feature])
        .env("LLVM_PREFIX", llvm_prefix(rustc, llvm, &dir)?);
    tools::run(&mut install)?;
    Ok(linker)
}

/// A directory with the LLVM of a rustc, by the names that the linker's build looks for.
fn llvm_prefix(rustc: &Path, llvm: &str, dir: &Path) -> anyhow::Result<PathBuf> {
    let version: Vec<&str> = llvm.split('.').take(2).collect();
    let version = version.join(".");
    let sysroot = sysroot(rustc)?;
    let places = ["lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib"];
    let library = places
        .iter()
        .filter_map(|place| fs::read_dir(sysroot.join(place)).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("libLLVM.so.{version}"))
        })
        .with_context(|| format!("no libLLVM.so.{version} beside {}", rustc.display()))?;
    let prefix = dir.join("llvm");
    fs::create_dir_all(prefix.join("lib"))?;
    for name in ["libLLVM.so".to_owned(), format!("libLLVM.so.{version}")] {
        let link = prefix.join("lib").join(name);
        let _ = fs::remove_file(&link);
        symlink(&library, link)?;
    }
    Ok(prefix)
}

/// The program that leaves out sections: the one that comes with the rustc in PATH.
fn objcopy() -> anyhow::Result<Command> {
    let sysroot = sysroot(Path::new("rustc"))?;
    let says = output(command("rustc", &["-vV"]))?;
    let host = says.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not name its host")?;
    let path = sysroot.join(format!("lib/rustlib/{host}/bin/rust-objcopy"));
    if !path.is_file() {
        bail!("there is no {}; update Rust", path.display());
    }
    let mut objcopy = command(path, &[]);
    objcopy.env("LD_LIBRARY_PATH", sysroot.join("lib"));
    Ok(objcopy)
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        bail!("{program} ended with {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
