//! The program `proxyd`: flags in, exit status out. 0 is success, 1 a failure, 2 wrong usage.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use proxyd::cli::Cli;
use proxyd::config::{Config, LogFormat, Mode};
use proxyd::dry_run::Output;
use proxyd::logging::{self, Lines};
use proxyd::run::{self, RunError};
use proxyd::source::manifests::ManifestError;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match Config::from_cli(cli) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}\n\nFor more information, try 'proxyd --help'.");
            return ExitCode::from(2);
        }
    };
    let lines = match config.logging.format {
        LogFormat::Text => Lines::Text,
        LogFormat::Json => Lines::Json,
    };
    let verbosity = logging::start(lines, config.logging.verbosity);
    for note in &config.notes {
        note.log();
    }
    let result = match &config.mode {
        Mode::Agent => run::agent(&config, &verbosity).map(|()| ExitCode::SUCCESS),
        Mode::Cleanup => run::cleanup(&config).map(|()| ExitCode::SUCCESS),
        Mode::Init => run::init(&config).map(|()| ExitCode::SUCCESS),
        Mode::WriteConfig(path) => run::write_config(&config, path).map(|()| ExitCode::SUCCESS),
        Mode::DryRun(output) => dry_run(&config, *output),
    };
    result.unwrap_or_else(|error| {
        match lines {
            Lines::Text => eprintln!("error: {error}"),
            // Whoever reads the log takes every line for an object.
            Lines::Json => tracing::error!("{error}"),
        }
        ExitCode::FAILURE
    })
}

/// Prints the rules, and to standard error what is not served. A failure if any input was refused.
fn dry_run(config: &Config, output: Output) -> Result<ExitCode, RunError> {
    let (dry_run, errors) = run::plan_once(config, output)?;
    let level = |is_refusal| if is_refusal { "error" } else { "warning" };
    for error in &errors {
        eprintln!("{}: {error}", level(error.is_refusal()));
    }
    for note in &dry_run.notes {
        eprintln!("{}: {note}", level(note.is_refusal));
    }
    if let Some(failure) = &dry_run.failure {
        eprintln!("error: {failure}");
    } else if dry_run.is_empty {
        eprintln!("warning: there is no Service in the input; these rules serve none");
    }
    std::io::stdout()
        .write_all(dry_run.text.as_bytes())
        .map_err(RunError::Output)?;
    let refused = errors.iter().any(ManifestError::is_refusal)
        || dry_run.notes.iter().any(|note| note.is_refusal)
        || dry_run.failure.is_some();
    Ok(if refused {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
