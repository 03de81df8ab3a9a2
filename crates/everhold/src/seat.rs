//! For which service on which node a helper of an agent works, and what it has to know of both.

use crate::agent::{self, Site};
use crate::layout::Layout;
use crate::node_file::NodeFile;
use crate::spec::record;
use crate::{helper, log};
use anyhow::Context;
use everhold_adapters::postgres::PgConfig;
use everhold_core::durable::Durable;
use everhold_core::spec::{PostgresSpec, Spec};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// The arguments of a helper's role.
#[derive(clap::Args, Clone, Debug)]
pub struct Seat {
    #[arg(long)]
    node_file: PathBuf,
    #[arg(long)]
    pub service: String,
}

/// What the seat's node has on its disk.
pub struct Ground {
    pub node: NodeFile,
    pub layout: Layout,
    /// As the node last heard of it.
    pub spec: Spec,
    pub service: String,
}

impl Seat {
    /// A helper in that role.
    pub fn command(role: &str, node_file: &Path, service: &str) -> Command {
        let mut command = helper::command(role);
        command.arg("--node-file").arg(node_file).arg("--service").arg(service);
        command
    }

    /// Reads the node's file and its copy of the spec.
    pub fn open(&self) -> anyhow::Result<Ground> {
        let node = NodeFile::read(&self.node_file)?;
        log::name(&node.name);
        let layout = Layout::new(&node.data)?;
        let copy = layout.node(&node.name).join(agent::SPEC_COPY);
        let text = std::fs::read_to_string(&copy).context("read the spec")?;
        let spec = record::from_json(&text).context("read the spec")?;
        Ok(Ground { node, layout, spec, service: self.service.clone() })
    }
}

impl Ground {
    pub fn declared(&self) -> anyhow::Result<&PostgresSpec> {
        self.spec.postgres(&self.service).context("the service is not in the spec")
    }

    /// The node's record of the service, and its instance.
    pub fn instance(&self) -> anyhow::Result<(Durable, PgConfig)> {
        let Ground { node, layout, spec, service } = self;
        let site = Site { node, layout, spec };
        let (durable, config, _) = agent::open(&site, service, self.declared()?)?;
        Ok((durable, config))
    }
}
