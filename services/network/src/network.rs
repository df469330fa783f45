//! A bridge network: endpoints are made, found and removed here.
//!
//! Giving a container its endpoint is on the path of every start, and takes no
//! more than writing a record when a ready sandbox is at hand: the `workers`
//! make those ahead of need and clear away what is deleted, so that no caller
//! waits for the kernel's long lock over all links. Where containers end faster
//! than the kernel clears away, a create waits until the backlog is shorter.
//!
//! A create is a list of steps, each undone when a later one fails: hold the
//! host's ports, take a sandbox, write the record, publish. A crash between two
//! of them leaves a record that says how far it came (see `sandbox`), and the
//! next start finishes or clears it (see `reconcile`).
//!
//! # Locking
//! `State` has one lock, never held over a call to the kernel or the disk. A
//! container whose endpoint is being made or deleted is marked busy under it (see
//! `claim`). The bridge has another, taken before the state's where both are
//! needed, and held while a bridge that somebody removed is made again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::addresses::{AddressPool, Refusal};
use crate::claim::Claim;
use crate::config::{Settings, Wanted};
use crate::endpoint::{Assignment, ContainerId, Endpoint, EndpointRequest, PublishedPort, Users};
use crate::error::{NetworkError, StartError, chain};
use crate::firewall::flows::{self, Published};
use crate::firewall::{Firewall, Watch};
use crate::link::{self, RemovalGroup};
use crate::namespace;
use crate::netlink::Netlink;
use crate::ports::{HeldPort, HostPorts};
use crate::reconcile;
use crate::sandbox::{self, Bridge, Life, Sandbox, SandboxId};
use crate::store::Records;
use crate::workers;

/// How long a caller waits for what is about to be free: an address, a port of
/// the bridge, room in the backlog. Callers give a call half a minute.
const PATIENCE: Duration = Duration::from_secs(20);

/// Endpoints of a bridge: the kernel numbers ports with ten bits, from 1 on
/// (`BR_MAX_PORTS`, net/bridge/br_private.h).
const PORTS_MAX: usize = 1023;

/// Endpoints that wait for their removal, before new ones have to wait too. The
/// kernel removes some hundreds a second, so that is how far callers can get
/// ahead of it; each takes 100 to 200 KiB of the kernel's memory.
const BACKLOG_MAX: usize = 128;

/// One bridge, its addresses, its endpoints and its firewall table.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    watch: Mutex<Option<Watch>>,
}

/// What the callers and the workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    bridge: Mutex<Bridge>,
    pub(crate) records: Box<dyn Records>,
    pub(crate) firewall: Arc<Firewall>,
    pub(crate) ports: HostPorts,
    pub(crate) removal: RemovalGroup,
    state: Mutex<State>,
    /// Notified whenever something in the state has changed that somebody may
    /// wait for.
    pub(crate) changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) endpoints: HashMap<ContainerId, Slot>,
    /// Sandboxes without an owner.
    pub(crate) ready: VecDeque<Sandbox>,
    /// Sandboxes that the workers are making.
    pub(crate) building: usize,
    /// Sandboxes to be removed.
    pub(crate) doomed: Vec<Sandbox>,
    /// Sandboxes that the workers are removing.
    pub(crate) dying: usize,
    /// Sandboxes that could not be removed: it is tried again later.
    pub(crate) stuck: Vec<Sandbox>,
    /// Ports that were just published: older flows to them are forgotten.
    pub(crate) published: Vec<Published>,
    pub(crate) addresses: AddressPool,
    pub(crate) stopping: bool,
}

/// What a container has.
#[derive(Debug)]
pub(crate) enum Slot {
    /// Being made or deleted.
    Busy,
    Live(Box<Live>),
}

/// A container's endpoint.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) sandbox: Sandbox,
    pub(crate) assignment: Assignment,
    /// Held for as long as the endpoint lives.
    pub(crate) _held: Vec<HeldPort>,
}

/// How a network looks from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    pub bridge: String,
    pub subnet: crate::subnet::Subnet,
    pub gateway: Ipv4Addr,
    pub mtu: u32,
    pub addresses_used: u64,
    pub addresses_total: u64,
}

impl Network {
    /// Brings the network up: the bridge, the firewall, and everything that a
    /// former run of the service left.
    ///
    /// # Errors
    /// The host's state forbids it; nothing was changed where the error says
    /// that the configuration is to blame.
    pub fn start(wanted: Wanted) -> Result<Self, StartError> {
        let shared = Arc::new(reconcile::start(wanted)?);
        let watch = Watch::start(Arc::clone(&shared.firewall))
            .map_err(crate::firewall::FirewallError::from)?;
        let workers = workers::start(&shared)?;
        Ok(Self {
            shared,
            workers: Mutex::new(workers),
            watch: Mutex::new(Some(watch)),
        })
    }

    /// Makes a container's endpoint.
    ///
    /// # Errors
    /// The container has one, a port or an address is not to be had, or the
    /// kernel refuses. Nothing of it is left then.
    pub fn create(&self, request: EndpointRequest) -> Result<Endpoint, NetworkError> {
        let shared = &self.shared;
        let claim = Claim::new(shared, &request.container)?;
        let held = shared.ports.hold(&request.ports)?;
        let taken = shared.take_sandbox(request.address, request.users.as_ref(), request.mac)?;
        let assignment = Assignment {
            container: request.container,
            names: request.names,
            ports: held.iter().map(|held| held.port).collect(),
            ephemeral: request.ephemeral,
            created: now(),
        };
        let sandbox = taken.at(Life::Assigned(assignment.clone()));
        shared.records.put(&sandbox).inspect_err(|_| {
            shared.doom(taken.clone());
        })?;
        shared
            .firewall
            .publish(&assignment.ports, sandbox.address)
            .inspect_err(|_| shared.doom(taken))?;
        let live = Live {
            sandbox,
            assignment,
            _held: held,
        };
        let endpoint = shared.endpoint(&live);
        shared.state().published.extend(
            targets(&live.assignment.ports, live.sandbox.address)
                .filter(|(port, _)| flows::concerns(port)),
        );
        claim.fulfil(live);
        Ok(endpoint)
    }

    /// Removes a container's endpoint. False: it had none.
    ///
    /// # Errors
    /// It is not on record as removed; it can be tried again.
    pub fn delete(&self, container: &ContainerId) -> Result<bool, NetworkError> {
        let shared = &self.shared;
        let Some((claim, live)) = Claim::of_live(shared, container)? else {
            return Ok(false);
        };
        if let Err(error) = shared.records.put(&live.sandbox.at(Life::Doomed)) {
            claim.fulfil(*live);
            return Err(error.into());
        }
        if let Err(error) = shared.firewall.unpublish(&live.assignment.ports) {
            // The account is without them: the next change brings the table in
            // line with it.
            tracing::error!(
                %container,
                error = %chain(&error),
                "published ports are still in the firewall"
            );
        }
        let Live { sandbox, .. } = *live;
        shared.bury(sandbox);
        Ok(true)
    }

    /// A container's endpoint.
    #[must_use]
    pub fn get(&self, container: &ContainerId) -> Option<Endpoint> {
        match self.shared.state().endpoints.get(container) {
            Some(Slot::Live(live)) => Some(self.shared.endpoint(live)),
            Some(Slot::Busy) | None => None,
        }
    }

    /// All endpoints, by container.
    #[must_use]
    pub fn list(&self) -> Vec<Endpoint> {
        let state = self.shared.state();
        let mut endpoints: Vec<_> = state
            .endpoints
            .values()
            .filter_map(|slot| match slot {
                Slot::Live(live) => Some(self.shared.endpoint(live)),
                Slot::Busy => None,
            })
            .collect();
        drop(state);
        endpoints.sort_by(|one, other| one.container.cmp(&other.container));
        endpoints
    }

    /// How the network looks. Addresses of ready sandboxes count as free.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let settings = &self.shared.settings;
        let mtu = self.shared.bridge().mtu;
        let state = self.shared.state();
        Overview {
            bridge: settings.bridge.clone(),
            subnet: settings.subnet,
            gateway: settings.gateway,
            mtu,
            addresses_used: state.endpoints.len() as u64,
            addresses_total: state.addresses.total(),
        }
    }

    /// Waits until the workers have nothing to do. For tests and measurements.
    #[must_use]
    pub fn settled(&self, limit: Duration) -> bool {
        let wanted = self.shared.settings.warm_pool;
        let state = self.shared.state();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| {
                state.ready.len() < wanted || state.building + state.unremoved() > 0
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.ready.len() >= wanted && state.unremoved() == 0
    }

    /// Stops the workers and removes what nobody uses: the ready sandboxes and,
    /// where no endpoint is left, the firewall table and the bridge. Endpoints
    /// stay as they are, for the next start.
    pub fn stop(&self) {
        drop(
            self.watch
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        {
            let mut state = self.shared.state();
            state.stopping = true;
            self.shared.changed.notify_all();
        }
        let workers =
            std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            if worker.join().is_err() {
                tracing::error!("a worker has panicked");
            }
        }
        self.shared.clear_away();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let running = !self
            .workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        if running {
            self.stop();
        }
    }
}

impl Shared {
    pub(crate) fn new(
        settings: Settings,
        bridge: Bridge,
        records: Box<dyn Records>,
        firewall: Firewall,
        removal: RemovalGroup,
        state: State,
    ) -> Self {
        Self {
            settings,
            bridge: Mutex::new(bridge),
            records,
            firewall: Arc::new(firewall),
            ports: HostPorts::default(),
            removal,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ready sandbox, or a new one: none that is ready has users of its own, or a
    /// hardware address that was asked for.
    fn take_sandbox(
        &self,
        wanted: Option<Ipv4Addr>,
        users: Option<&Users>,
        mac: Option<[u8; 6]>,
    ) -> Result<Sandbox, NetworkError> {
        let any = users.is_none() && mac.is_none();
        let address = match self.reserve(wanted, any)? {
            Reserved::Ready(sandbox) => return Ok(sandbox),
            Reserved::Address(address) => address,
        };
        self.build(address, wanted.is_some(), users, mac)
    }

    fn reserve(&self, wanted: Option<Ipv4Addr>, any: bool) -> Result<Reserved, NetworkError> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        loop {
            if state.stopping {
                return Err(NetworkError::Stopping);
            }
            let refusal = if state.backlog() >= BACKLOG_MAX {
                NetworkError::Backlog {
                    count: state.backlog(),
                    seconds: PATIENCE.as_secs(),
                }
            } else {
                let ready = match any || wanted.is_some() {
                    true => state.take_ready(wanted),
                    false => None,
                };
                match ready {
                    // The maker is woken when the caller is served: it would take
                    // the processor from it here.
                    Some(sandbox) if any => return Ok(Reserved::Ready(sandbox)),
                    // It has the wanted address, and is not of the wanted kind.
                    Some(sandbox) => {
                        drop(state);
                        self.doom(sandbox);
                        state = self.state();
                    }
                    None => {}
                }
                match self.reserve_address(&mut state, wanted)? {
                    Ok(address) => return Ok(Reserved::Address(address)),
                    Err(refusal) => refusal,
                }
            };
            // What is being cleared away may be what is wanted.
            let left = deadline.saturating_duration_since(Instant::now());
            let hopeless = wanted.is_some_and(|address| state.is_assigned(address));
            if hopeless || state.building + state.backlog() == 0 || left.is_zero() {
                return Err(refusal);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// An address for a new sandbox; the inner error is one that may pass.
    fn reserve_address(
        &self,
        state: &mut State,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Result<Ipv4Addr, NetworkError>, NetworkError> {
        if state.is_full() {
            return Ok(Err(self.bridge_full(state)));
        }
        let reserved = match wanted {
            Some(address) => state.addresses.claim(address).map(|()| address),
            None => state.addresses.take(),
        };
        match (reserved, wanted) {
            (Ok(address), _) => Ok(Ok(address)),
            (Err(Refusal::Outside), wanted) => Err(NetworkError::AddressOutside {
                address: wanted.unwrap_or(Ipv4Addr::UNSPECIFIED),
                subnet: self.settings.subnet,
            }),
            (Err(Refusal::InUse | Refusal::Exhausted), Some(address)) => {
                Ok(Err(NetworkError::AddressInUse { address }))
            }
            (Err(Refusal::InUse | Refusal::Exhausted), None) => {
                Ok(Err(NetworkError::PoolExhausted {
                    subnet: self.settings.subnet,
                    total: state.addresses.total(),
                }))
            }
        }
    }

    fn bridge_full(&self, state: &State) -> NetworkError {
        NetworkError::BridgeFull {
            bridge: self.settings.bridge.clone(),
            ports: state.addresses.in_use(),
        }
    }

    /// Makes a sandbox for an address that was reserved.
    pub(crate) fn build(
        &self,
        address: Ipv4Addr,
        chosen: bool,
        users: Option<&Users>,
        mac: Option<[u8; 6]>,
    ) -> Result<Sandbox, NetworkError> {
        let id = match SandboxId::random() {
            Ok(id) => id,
            Err(source) => {
                self.release(address);
                return Err(NetworkError::Random { source });
            }
        };
        let sandbox = Sandbox {
            id,
            address,
            chosen,
            own_users: users.is_some(),
            mac,
            life: Life::Building,
        };
        if let Err(error) = self.records.put(&sandbox) {
            self.release(address);
            return Err(error.into());
        }
        let mut built = sandbox::build(&sandbox, &self.settings, self.bridge(), users);
        if built.is_err() && self.bridge_was_replaced() {
            // What was made of it is gone: a failed build leaves no pin.
            built = sandbox::build(&sandbox, &self.settings, self.bridge(), users);
        }
        if let Err(error) = built {
            self.doom(sandbox);
            return Err(if error.is_bridge_full() {
                // Somebody else's links are ports of it too.
                self.bridge_full(&self.state())
            } else {
                error.into()
            });
        }
        Ok(sandbox.at(Life::Ready))
    }

    fn bridge(&self) -> Bridge {
        *self.bridge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the bridge was gone, and is there again with all its ports. The
    /// lock is held meanwhile, so that it is made once.
    fn bridge_was_replaced(&self) -> bool {
        let mut bridge = self.bridge.lock().unwrap_or_else(PoisonError::into_inner);
        let ours: HashSet<SandboxId> = {
            let state = self.state();
            let live = state.endpoints.values().filter_map(|slot| match slot {
                Slot::Live(live) => Some(&live.sandbox),
                Slot::Busy => None,
            });
            live.chain(&state.ready)
                .map(|sandbox| sandbox.id.clone())
                .collect()
        };
        match reconcile::replace_bridge(&self.settings, *bridge, &ours) {
            Ok(Some(new)) => {
                tracing::warn!(
                    name = self.settings.bridge,
                    "somebody removed the bridge; it is there again"
                );
                *bridge = new;
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::error!(error = %chain(&error), "the bridge cannot be looked after");
                false
            }
        }
    }

    /// Records that a sandbox is to be removed, and has it removed.
    pub(crate) fn doom(&self, sandbox: Sandbox) {
        if let Err(error) = self.records.put(&sandbox.at(Life::Doomed)) {
            tracing::error!(sandbox = %sandbox.id, error = %chain(&error), "not on record as removed");
        }
        self.bury(sandbox);
    }

    /// Has a sandbox removed that is on record as such.
    fn bury(&self, sandbox: Sandbox) {
        let mut state = self.state();
        state.doomed.push(sandbox);
        self.changed.notify_all();
    }

    fn release(&self, address: Ipv4Addr) {
        let mut state = self.state();
        state.addresses.release(address);
        self.changed.notify_all();
    }

    fn endpoint(&self, live: &Live) -> Endpoint {
        let settings = &self.settings;
        let address = live.sandbox.address;
        let assignment = &live.assignment;
        let names = settings.resolver.names();
        let namespace = live.sandbox.id.pin(&settings.pins);
        Endpoint {
            container: assignment.container.clone(),
            names: assignment.names.clone(),
            user_namespace: live
                .sandbox
                .own_users
                .then(|| namespace::owner_of(&namespace)),
            namespace,
            interface: link::INSIDE,
            address,
            subnet: settings.subnet,
            gateway: settings.gateway,
            mac: live.sandbox.mac(),
            ports: assignment.ports.clone(),
            servers: names.servers,
            search: names.search,
            created: assignment.created,
        }
    }

    /// The last steps of a stop; the workers have ended.
    fn clear_away(&self) {
        let (mut unused, idle) = {
            let mut state = self.state();
            let mut unused: Vec<_> = state.ready.drain(..).collect();
            unused.append(&mut state.doomed);
            unused.append(&mut state.stuck);
            (unused, state.endpoints.is_empty())
        };
        let mut host = match Netlink::route() {
            Ok(host) => host,
            Err(error) => {
                tracing::error!(error = %chain(&error), "unused endpoints are left over");
                return;
            }
        };
        workers::remove(self, &mut host, &mut unused);
        if !idle {
            return;
        }
        if let Err(error) = self.firewall.remove() {
            tracing::error!(error = %chain(&error), "the firewall table is left over");
        }
        reconcile::remove_bridge(&mut host, &self.settings, self.removal);
    }
}

enum Reserved {
    Ready(Sandbox),
    Address(Ipv4Addr),
}

impl State {
    /// Sandboxes that are about to be gone.
    pub(crate) fn backlog(&self) -> usize {
        self.doomed.len() + self.dying
    }

    /// Sandboxes that are to be removed.
    fn unremoved(&self) -> usize {
        self.backlog() + self.stuck.len()
    }

    /// Whether a container has this address.
    fn is_assigned(&self, address: Ipv4Addr) -> bool {
        self.endpoints
            .values()
            .any(|slot| matches!(slot, Slot::Live(live) if live.sandbox.address == address))
    }

    /// Whether the bridge has no port left: every sandbox has an address and a
    /// port of it, from before it is made until it is gone.
    pub(crate) fn is_full(&self) -> bool {
        self.addresses.in_use() >= PORTS_MAX
    }

    /// A ready sandbox: any, or the one that has the wanted address.
    fn take_ready(&mut self, wanted: Option<Ipv4Addr>) -> Option<Sandbox> {
        let Some(wanted) = wanted else {
            return self.ready.pop_front();
        };
        let index = self
            .ready
            .iter()
            .position(|sandbox| sandbox.address == wanted)?;
        self.ready.remove(index)
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Where each of these ports leads.
pub(crate) fn targets(
    ports: &[PublishedPort],
    address: Ipv4Addr,
) -> impl Iterator<Item = (PublishedPort, crate::firewall::Target)> {
    ports.iter().map(move |port| {
        let target = crate::firewall::Target {
            address,
            port: port.container_port,
        };
        (*port, target)
    })
}
