//! `everhold install`: this program, its unit for systemd and its directories, for machines that have
//! the binary alone. What was installed as a package is the package's.

use anyhow::{Context, bail};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::layout::Layout;
use crate::machine::NODE_FILE;
use crate::node_file::NodeFile;
use crate::{context, supervisor};

/// The unit as the package has it, for a program in `/usr/bin`.
const UNIT: &str = include_str!("../../../deploy/everhold.service");

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The program goes to PREFIX/bin, the unit to PREFIX/lib/systemd/system
    #[arg(long, default_value = "/usr", value_name = "DIR")]
    prefix: PathBuf,
    /// Into a machine's root directory that is mounted here, for images
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
    /// Take program and unit away; data and node file stay
    #[arg(long)]
    uninstall: bool,
}

/// One thing to do, or done already.
enum Step {
    Directory { path: PathBuf, mode: u32 },
    File { path: PathBuf, mode: u32, content: Vec<u8> },
    Remove { path: PathBuf },
    Reload,
}

impl Options {
    /// A path of the machine, as it is seen from here.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
    }

    fn program(&self) -> PathBuf {
        self.prefix.join("bin/everhold")
    }

    fn unit(&self) -> PathBuf {
        self.prefix.join("lib/systemd/system/everhold.service")
    }

    fn is_this_machine(&self) -> bool {
        self.root == Path::new("/")
    }
}

/// Does it, or says why not before anything is touched. What is done already is left alone.
pub fn run(options: &Options) -> anyhow::Result<Vec<String>> {
    if !options.prefix.is_absolute() {
        bail!(
            "E274 --prefix {} is not absolute; next step: name the whole path",
            show(&options.prefix)
        );
    }
    if options.is_this_machine() {
        check_this_machine(options)?;
    }
    for path in [options.program(), options.unit()] {
        if let Some(package) = owner(&options.at("/var/lib/dpkg"), &path) {
            bail!(
                "E272 {} belongs to the package {package}; next step: install or remove it with \
                 apt, or choose another --prefix",
                show(&path)
            );
        }
    }
    let steps = if options.uninstall { uninstall(options) } else { install(options)? };
    let mut told = Vec::new();
    for step in steps {
        let text = step.text();
        if step.is_done() {
            told.push(format!("done already: {text}"));
            continue;
        }
        if !options.dry_run {
            step.carry_out().with_context(|| {
                format!("E274 cannot {text}; next step: mend what is named, then again")
            })?;
        }
        told.push(text);
    }
    if !options.uninstall && !options.dry_run {
        supervisor::say(
            "Next: `everhold init` (the first machine) or `everhold join` (each other one), then \
             `systemctl enable --now everhold`",
        );
    }
    Ok(told)
}

fn check_this_machine(options: &Options) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() && !options.dry_run {
        bail!("E270 only root may install on this machine; next step: run it with sudo");
    }
    if !on_path("systemctl") {
        bail!(
            "E271 this machine has no systemd; next step: copy the program to a place of your \
             choice, and have what starts services here run `everhold run` as root"
        );
    }
    if options.uninstall {
        let data = NodeFile::read(Path::new(NODE_FILE)).map(|node| node.data);
        let layout = Layout::new(data.unwrap_or_else(|_| context::default_data()))?;
        if supervisor::lock(&layout).is_err() {
            bail!(
                "E273 everhold still runs here; next step: `systemctl disable --now everhold`, \
                 which stops its services cleanly"
            );
        }
    }
    Ok(())
}

fn install(options: &Options) -> anyhow::Result<Vec<Step>> {
    let directory = |path: &str, mode| Step::Directory { path: options.at(path), mode };
    let program = fs::read("/proc/self/exe").context("E274 cannot read this program")?;
    let start = format!("ExecStart={} run", show(&options.program()));
    let unit = UNIT.replace("ExecStart=/usr/bin/everhold run", &start);
    let file = |path, mode, content| Step::File { path: options.at(path), mode, content };
    let mut steps = vec![
        directory("/etc/everhold", 0o750),
        // PostgreSQL's own user passes through here to its directories, and sees nothing else.
        directory("/var/lib/everhold", 0o711),
        file(options.program(), 0o755, program),
        file(options.unit(), 0o644, unit.into_bytes()),
    ];
    steps.extend(reload(options));
    Ok(steps)
}

fn uninstall(options: &Options) -> Vec<Step> {
    let remove = |path| Step::Remove { path: options.at(path) };
    let mut steps = vec![remove(options.unit()), remove(options.program())];
    steps.extend(reload(options));
    steps
}

/// Where systemd runs, and not in an image or a chroot.
fn reload(options: &Options) -> Option<Step> {
    let runs = options.is_this_machine() && Path::new("/run/systemd/system").is_dir();
    runs.then_some(Step::Reload)
}

impl Step {
    fn text(&self) -> String {
        match self {
            Step::Directory { path, mode } => format!("make directory {} ({mode:o})", show(path)),
            Step::File { path, mode, .. } => format!("write {} ({mode:o})", show(path)),
            Step::Remove { path } => format!("remove {}", show(path)),
            Step::Reload => "run systemctl daemon-reload".to_string(),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Step::Directory { path, .. } => path.is_dir(),
            Step::File { path, mode, content } => {
                let mode_is = |meta: fs::Metadata| meta.permissions().mode() & 0o7777 == *mode;
                fs::read(path).is_ok_and(|found| found == *content)
                    && fs::metadata(path).is_ok_and(mode_is)
            }
            Step::Remove { path } => !path.exists(),
            Step::Reload => false,
        }
    }

    fn carry_out(&self) -> anyhow::Result<()> {
        match self {
            Step::Directory { path, mode } => {
                DirBuilder::new().recursive(true).mode(0o755).create(path)?;
                fs::set_permissions(path, Permissions::from_mode(*mode))?;
            }
            Step::File { path, mode, content } => write(path, *mode, content)?,
            Step::Remove { path } => fs::remove_file(path)?,
            Step::Reload => {
                let mut systemctl = Command::new("systemctl");
                let done = systemctl.arg("daemon-reload").stdin(Stdio::null()).status()?;
                if !done.success() {
                    bail!("systemctl ended with {done}");
                }
            }
        }
        Ok(())
    }
}

/// In one step, so that a program that runs is replaced and never changed.
fn write(path: &Path, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

/// The package that this file belongs to; none where there is no dpkg. Debian's `/lib` is `/usr/lib`.
fn owner(dpkg: &Path, path: &Path) -> Option<String> {
    let whole = show(path);
    let short = whole.strip_prefix("/usr").unwrap_or(&whole);
    let mut query = Command::new("dpkg-query");
    query.arg("--admindir").arg(dpkg).args(["--search", &whole, short]).stderr(Stdio::null());
    let told = String::from_utf8(query.output().ok()?.stdout).ok()?;
    let lines = told.lines().filter_map(|line| line.split_once(": "));
    let mut owners = lines.filter(|(_, file)| [whole.as_str(), short].contains(file));
    owners.next().map(|(package, _)| package.to_string())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
