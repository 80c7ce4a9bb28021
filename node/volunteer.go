package node

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4/options"
	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	badgerds "github.com/ipfs/go-ds-badger4"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	relayv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"sotto/internal/clock"
	"sotto/record"
	"sotto/wire"
)

// VolunteerConfig is what a volunteer is told; the two keys are required.
type VolunteerConfig struct {
	ServiceKey ed25519.PrivateKey // relay, reachability checks; signs the volunteer's terms
	DHTKey     ed25519.PrivateKey // DHT server and bootstrap: its own key, so that it never learns inner hosts

	Network         string
	ServicePort     int      // default 4001; negative is any
	DHTPort         int      // default 4002; negative is any
	Listen          []string // as Config.Listen
	AnnounceService []string // multiaddrs to announce instead of what the host finds out
	AnnounceDHT     []string
	Peers           []string // DHT hosts of other volunteers, with /p2p
	AllowPrivate    bool
	MDNS            bool   // announce the DHT host on the local network
	MaxUsers        int    // 1000
	MaxRecords      int    // 100 000
	NoRelay         bool   // pass nothing on
	NoDHT           bool   // keep no records and answer no look-ups; the DHT host still lists volunteers
	NoAutoNAT       bool   // tell nobody whether it can be reached
	DataDir         string // of the DHT's records; "" keeps them in memory

	Clock   clock.Clock
	Log     *slog.Logger
	NewHost func(role Role, opts ...libp2p.Option) (host.Host, error)
}

// Volunteer helps people find and reach each other: a service host that relays and checks reachability, and a DHT host.
type Volunteer struct {
	cfg   VolunteerConfig
	proto protocols
	clock clock.Clock
	log   *slog.Logger

	service, dht host.Host
	kad          *dual.DHT
	store        ds.Batching
	capped       *cappedStore
	known        *directory
	counts       counters
	tasks        *tasks
	close        sync.Once
	closeErr     error

	mu     sync.Mutex // guards what follows
	terms  []byte     // our own, signed
	issued time.Time
	where  string            // the addresses in terms
	others map[peer.ID]heard // by service key
}

// heard is another volunteer's terms, taken from its own mouth.
type heard struct {
	terms []byte
	at    time.Time
}

// NewVolunteer makes both hosts, which listen when it returns.
func NewVolunteer(cfg VolunteerConfig) (*Volunteer, error) {
	if len(cfg.ServiceKey) != ed25519.PrivateKeySize || len(cfg.DHTKey) != ed25519.PrivateKeySize {
		return nil, errors.New("start volunteer: needs a service key and a DHT key")
	}
	if cfg.ServiceKey.Equal(cfg.DHTKey) {
		return nil, errors.New("start volunteer: service key and DHT key must differ")
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.MaxUsers = cmp.Or(max(cfg.MaxUsers, 0), 1000)
	cfg.MaxRecords = cmp.Or(max(cfg.MaxRecords, 0), 100_000)
	cfg.ServicePort = cmp.Or(cfg.ServicePort, 4001)
	cfg.DHTPort = cmp.Or(cfg.DHTPort, 4002)
	v := &Volunteer{
		cfg: cfg, proto: protocolsOf(cfg.Network), clock: cfg.Clock, log: cfg.Log,
		known: newDirectory(maxListed, cfg.AllowPrivate), others: map[peer.ID]heard{}, tasks: newTasks(),
	}
	if err := v.known.configure(cfg.Peers, nil); err != nil {
		return nil, err
	}
	if err := v.start(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	for _, h := range []host.Host{v.service, v.dht} { // they open with Run
		v.tasks.handle(h, v.proto.volunteers, func(_ context.Context, s network.Stream) { serveList(s, &v.counts, v.list) })
		v.tasks.handle(h, v.proto.ping, func(_ context.Context, s network.Stream) { servePing(s, &v.counts) })
	}
	return v, nil
}

func (v *Volunteer) start() (err error) {
	if v.service, err = v.newHost(RoleService, v.cfg.ServiceKey, v.cfg.ServicePort, v.cfg.AnnounceService); err != nil {
		return fmt.Errorf("start service host on port %d: %w", v.cfg.ServicePort, err)
	}
	if v.dht, err = v.newHost(RoleDHT, v.cfg.DHTKey, v.cfg.DHTPort, v.cfg.AnnounceDHT); err != nil {
		return fmt.Errorf("start DHT host on port %d: %w", v.cfg.DHTPort, err)
	}
	if v.kad, err = v.newDHT(); err != nil {
		return fmt.Errorf("start DHT: %w", err)
	}
	return nil
}

func (v *Volunteer) newHost(role Role, key ed25519.PrivateKey, port int, announce []string) (host.Host, error) {
	opts, err := commonOptions(key, v.proto, 10*time.Second, v.cfg.AllowPrivate)
	if err != nil {
		return nil, err
	}
	users := v.cfg.MaxUsers
	conns, err := connmgr.NewConnManager(3*users/2, 2*users, connmgr.WithGracePeriod(2*time.Minute))
	if err != nil {
		return nil, err
	}
	resources, err := volunteerResources(users, v.proto)
	if err != nil {
		return nil, err
	}
	if port < 0 {
		if port, err = freePort(); err != nil {
			return nil, err
		}
	}
	opts = append(opts,
		libp2p.ListenAddrStrings(listenAddrs(v.cfg.Listen, port)...),
		libp2p.ConnectionManager(conns), libp2p.ResourceManager(resources),
		libp2p.ForceReachabilityPublic(), libp2p.UDPBlackHoleSuccessCounter(nil))
	if role == RoleService {
		if !v.cfg.NoRelay {
			opts = append(opts, libp2p.EnableRelayService(relayv2.WithResources(relayResources(users))))
		}
		if !v.cfg.NoAutoNAT {
			opts = append(opts, libp2p.EnableNATService(), libp2p.AutoNATServiceRateLimit(300, 6, time.Minute), libp2p.EnableAutoNATv2())
		}
	}
	if len(announce) > 0 {
		var list []ma.Multiaddr
		for _, s := range announce {
			a, err := ma.NewMultiaddr(s)
			if err != nil {
				return nil, fmt.Errorf("announce address %q: %w", s, err)
			}
			list = append(list, a)
		}
		opts = append(opts, libp2p.AddrsFactory(func([]ma.Multiaddr) []ma.Multiaddr { return list }), libp2p.DisableIdentifyAddressDiscovery())
	}
	return makeHost(v.cfg.NewHost, role, opts)
}

// relayResources raise libp2p's limits, which break at tens of users; relayed connections stay limited.
func relayResources(users int) relayv2.Resources {
	rc := relayv2.DefaultResources()
	rc.Limit = &relayv2.RelayLimit{Duration: 30 * time.Minute, Data: 16 << 20}
	rc.MaxReservations, rc.MaxReservationsPerIP, rc.MaxReservationsPerASN = users, min(users, 256), users
	rc.MaxCircuits, rc.BufferSize = 32, 4096
	return rc
}

// volunteerResources let many users in, many of them behind one address.
func volunteerResources(n int, p protocols) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	many := rcmgr.ResourceLimits{
		Streams: rcmgr.LimitVal(8 * n), StreamsInbound: rcmgr.LimitVal(8 * n), StreamsOutbound: rcmgr.LimitVal(8 * n), Memory: 512 << 20,
	}
	partial := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: rcmgr.LimitVal(3 * n), ConnsInbound: rcmgr.LimitVal(2 * n), ConnsOutbound: rcmgr.LimitVal(n),
			Streams: rcmgr.LimitVal(32 * n), StreamsInbound: rcmgr.LimitVal(16 * n), StreamsOutbound: rcmgr.LimitVal(16 * n),
			Memory: 1 << 30, FD: rcmgr.LimitVal(2 * n),
		},
		Transient: rcmgr.ResourceLimits{
			Conns: 512, ConnsInbound: 512, ConnsOutbound: 256, Streams: 2048, StreamsInbound: 2048, StreamsOutbound: 1024, Memory: 256 << 20, FD: 512,
		},
		ServiceDefault: many, ProtocolDefault: many,
		Service:  map[string]rcmgr.ResourceLimits{relayv2.ServiceName: many},
		Protocol: map[protocol.ID]rcmgr.ResourceLimits{},
	}
	for _, id := range []protocol.ID{proto.ProtoIDv2Hop, proto.ProtoIDv2Stop, identify.ID, identify.IDPush, p.kad, p.volunteers, p.mailbox, p.ping} {
		partial.Protocol[id] = many
	}
	conns := &rate.Limiter{NetworkPrefixLimits: loopbackUnlimited(), SubnetRateLimiter: rate.SubnetLimiter{
		IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: 5, Burst: 512}}},
		IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: rate.Limit{RPS: 5, Burst: 128}}},
		GracePeriod:      time.Minute,
	}}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(partial.Build(scaling.AutoScale())), rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 256}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: 64}, {PrefixLength: 48, ConnCount: 512}}),
		rcmgr.WithConnRateLimiters(conns))
}

// loopbackUnlimited keeps libp2p's exemption of this machine from the rate of new connections.
func loopbackUnlimited() []rate.PrefixLimit {
	return []rate.PrefixLimit{
		{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Limit: rate.Limit{}},
		{Prefix: netip.MustParsePrefix("::1/128"), Limit: rate.Limit{}},
	}
}

func (v *Volunteer) newDHT() (*dual.DHT, error) {
	store, count, err := v.openStore()
	if err != nil {
		return nil, err
	}
	v.store = store
	v.capped = newCappedStore(store, v.cfg.MaxRecords, count, &v.counts)
	check := validator{now: v.clock.Now, counts: &v.counts}
	mode := dht.ModeServer
	if v.cfg.NoDHT {
		mode = dht.ModeClient
	}
	opts := []dual.Option{
		dual.DHTOption(kadOptions(v.proto.prefix, check, v.capped, 5*time.Second, newRateLimit(putRate, putBurst, 4096))...),
		dual.DHTOption(dht.Mode(mode)), dual.LanDHTOption(lanProtocol()),
	}
	if v.cfg.AllowPrivate {
		opts = append(opts, dual.DHTOption(anyAddress()...))
	}
	return dual.New(v.dht, opts...)
}

// openStore opens the DHT's records with settings for a small machine (no value log, no compression: they are sealed).
func (v *Volunteer) openStore() (ds.Batching, int, error) {
	if v.cfg.DataDir == "" {
		return dssync.MutexWrap(ds.NewMapDatastore()), 0, nil
	}
	if err := os.MkdirAll(v.cfg.DataDir, 0o700); err != nil {
		return nil, 0, fmt.Errorf("record store: %w", err)
	}
	opt := badgerds.DefaultOptions
	opt.GcInterval = 0
	opt.Options = opt.Options.WithMemTableSize(8 << 20).WithNumMemtables(2).WithValueThreshold(1 << 20).WithValueLogFileSize(16 << 20).
		WithCompression(options.None).WithBlockCacheSize(8 << 20).WithIndexCacheSize(8 << 20).WithMetricsEnabled(false).WithLogger(nil)
	store, err := badgerds.NewDatastore(v.cfg.DataDir, &opt)
	if err != nil {
		return nil, 0, fmt.Errorf("record store in %s: %w", v.cfg.DataDir, err)
	}
	count, err := countRecords(context.Background(), store)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("record store in %s: %w", v.cfg.DataDir, err), store.Close())
	}
	return store, count, nil
}

// Addrs are the DHT host's addresses with /p2p: what others put under bootstrap.
func (v *Volunteer) Addrs() []string { return p2pAddrs(v.dht) }

// ServiceAddrs are the service host's addresses with /p2p.
func (v *Volunteer) ServiceAddrs() []string { return p2pAddrs(v.service) }

// Service is the service host, for what else is served there: a mailbox. It is closed with the volunteer.
func (v *Volunteer) Service() host.Host { return v.service }

// PutRecord gives somebody's record to the wide DHT: to this volunteer's own store, and to the others it belongs to.
func (v *Volunteer) PutRecord(ctx context.Context, name [32]byte, value []byte) error {
	if err := record.Validate(name, value, v.clock.Now()); err != nil {
		return fmt.Errorf("put record: %w", err)
	}
	err := v.kad.WAN.PutValue(ctx, record.Key(name), value)
	if err != nil && v.kad.WAN.RoutingTable().Size() > 0 { // else there is no other server, and we have it
		return fmt.Errorf("put record: %w", err)
	}
	return nil
}

// ClockOffset is the median of what at least three other volunteers say, relative to this machine's clock.
func (v *Volunteer) ClockOffset() (time.Duration, bool) { return v.known.offset() }

func p2pAddrs(h host.Host) []string {
	addrs, err := peer.AddrInfoToP2pAddrs(host.InfoFromHost(h))
	if err != nil {
		return nil
	}
	return addrStrings(addrs)
}

// Run serves until ctx ends, then closes the volunteer and returns when nothing of it runs any more.
func (v *Volunteer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { v.tasks.admit(ctx) })
	wg.Go(func() { v.keepPeers(ctx) })
	if v.cfg.MDNS {
		s := mdns.NewMdnsService(v.dht, v.proto.mdns, found(func(peer.AddrInfo) {}))
		if err := s.Start(); err != nil {
			v.log.Warn("cannot announce on the local network", "err", err)
		}
		defer func() { _ = s.Close() }()
	}
	<-ctx.Done()
	err := v.Close()
	wg.Wait()
	return err
}

// Close shuts both hosts and the record store. Run calls it.
func (v *Volunteer) Close() error {
	v.close.Do(func() {
		v.tasks.stop()
		var errs []error
		for _, c := range []io.Closer{closer(v.kad), closer(v.dht), closer(v.service), closer(v.store)} {
			if c != nil {
				errs = append(errs, c.Close())
			}
		}
		v.tasks.wait()
		v.closeErr = errors.Join(errs...)
	})
	return v.closeErr
}

// list makes the signed list: our clock, our terms, and those of volunteers heard lately.
func (v *Volunteer) list() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.clock.Now()
	l := list{Time: now, Entries: [][]byte{v.ownTerms(now)}}
	for id, o := range v.others {
		if now.Sub(o.at) > termsLife {
			delete(v.others, id)
			continue
		}
		if len(l.Entries) < maxListed {
			l.Entries = append(l.Entries, o.terms)
		}
	}
	for {
		size := 0
		for _, e := range l.Entries {
			size += 4 + len(e)
		}
		if size <= maxList-256 {
			return l.marshal(v.cfg.ServiceKey)
		}
		l.Entries = l.Entries[:len(l.Entries)-1]
	}
}

// ownTerms signs our terms anew when addresses changed or a day went by. Called with mu held.
func (v *Volunteer) ownTerms(now time.Time) []byte {
	t := Terms{Issued: now, ServiceAddrs: v.announced(v.service), DHTAddrs: v.announced(v.dht)}
	where := fmt.Sprint(t.ServiceAddrs, t.DHTAddrs)
	if v.terms != nil && where == v.where && now.Sub(v.issued).Abs() < termsFresh {
		return v.terms
	}
	t.Service, _ = keyOf(v.service.ID())
	t.DHT, _ = keyOf(v.dht.ID())
	v.terms, v.where, v.issued = t.marshal(v.cfg.ServiceKey), where, now
	return v.terms
}

func (v *Volunteer) announced(h host.Host) [][]byte {
	var out [][]byte
	for _, a := range h.Addrs() {
		b := a.Bytes()
		if len(b) <= wire.MaxAddr && len(out) < wire.MaxAddrs && (v.cfg.AllowPrivate || manet.IsPublicAddr(a)) {
			out = append(out, b)
		}
	}
	return out
}

// keepPeers stays connected to the volunteers it was told of, so that the DHT is one network, and collects their terms.
func (v *Volunteer) keepPeers(ctx context.Context) {
	for {
		wait := askAgain
		for _, info := range v.known.servers() {
			if err := v.visit(ctx, info); err != nil {
				v.log.Info("other volunteer cannot be reached", "peer", short(info.ID), "err", err)
				wait = askRetry
			}
		}
		if v.kad.WAN.RoutingTable().Size() > 1 {
			_ = v.kad.WAN.RefreshRoutingTable()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (v *Volunteer) visit(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := v.dht.Connect(ctx, info); err != nil {
		return err
	}
	all, offset, err := askVolunteer(ctx, v.dht, info.ID, v.proto.volunteers, v.clock.Now)
	if err != nil || len(all) == 0 {
		return err
	}
	self := all[0]
	id, err := peerOf(self.Service)
	if err != nil {
		return err
	}
	v.known.heard(id, offset)
	v.mu.Lock()
	if _, ok := v.others[id]; (ok || len(v.others) < maxListed) && self.raw != nil {
		v.others[id] = heard{terms: self.raw, at: v.clock.Now()}
	}
	v.mu.Unlock()
	for _, t := range all[1:] { // those it knows, we visit next time
		if p, err := peerOf(t.DHT); err == nil && p != v.dht.ID() {
			v.known.learn(v.known.dht, peer.AddrInfo{ID: p, Addrs: multiaddrs(t.DHTAddrs)})
		}
	}
	return nil
}

// VolunteerStatus is what an operator sees.
type VolunteerStatus struct {
	Bootstrap      []string          `json:"bootstrap"` // addresses with /p2p
	Service        []string          `json:"service"`
	Connections    int               `json:"connections"` // of the service host: people's inner hosts and front hosts
	DHTConnections int               `json:"dht_connections"`
	DHTServers     int               `json:"dht_servers"` // other volunteers in the DHT's table
	Records        int               `json:"records"`
	Volunteers     int               `json:"volunteers"` // other volunteers heard
	Refused        map[string]uint64 `json:"refused"`
}

// Status tells how the volunteer stands.
func (v *Volunteer) Status() VolunteerStatus {
	v.mu.Lock()
	others := len(v.others)
	v.mu.Unlock()
	return VolunteerStatus{
		Bootstrap: v.Addrs(), Service: v.ServiceAddrs(),
		Connections: len(v.service.Network().Conns()), DHTConnections: len(v.dht.Network().Conns()),
		DHTServers: v.kad.WAN.RoutingTable().Size(), Records: v.capped.size(),
		Volunteers: others, Refused: v.counts.snapshot(),
	}
}
