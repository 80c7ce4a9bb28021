package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	libp2precord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"sotto/record"
	"sotto/wire"
)

// namespace is the only one a DHT of ours takes (PROTOCOL 6.1).
const namespace = "sotto"

// validator judges what DHT servers hand out and store.
type validator struct {
	now    func() time.Time
	counts *counters
}

// Validate accepts a record that its owner signed for this name and that is good today.
func (v validator) Validate(key string, value []byte) error {
	name, err := record.ParseKey(key)
	if err == nil {
		err = record.Validate(name, value, v.now())
	}
	if err != nil {
		v.counts.add(refusedRecord)
	}
	return err
}

// Select prefers the newest.
func (v validator) Select(_ string, values [][]byte) (int, error) { return record.Select(values) }

// now is the time that days and expiry are judged by: the machine's, corrected by what volunteers say.
func (n *Node) now() time.Time {
	offset, _ := n.ClockOffset()
	return n.clock.Now().Add(offset)
}

// kadOptions are those of both tables of every DHT of ours.
func kadOptions(prefix string, v validator, store ds.Batching, timeout time.Duration, puts *rateLimit) []dht.Option {
	return []dht.Option{
		dht.ProtocolPrefix(protocol.ID(prefix)), dht.Validator(libp2precord.NamespacedValidator{namespace: v}),
		dht.DisableProviders(), dht.Datastore(store),
		dht.MaxRecordAge(36 * time.Hour), dht.ValueGCInterval(time.Hour), dht.Concurrency(6), dht.DisableAutoRefresh(),
		dht.RoutingTablePeerDiversityFilter(nil), // of use from about thirty volunteers on
		dht.WithCustomMessageSender(func(h host.Host, ids []protocol.ID) pb.MessageSenderWithDisconnect {
			return &kadSender{h: h, ids: ids, timeout: timeout}
		}),
		dht.OnRequestHook(func(_ context.Context, s network.Stream, req *pb.Message) {
			if req.GetType() != pb.Message_PUT_VALUE {
				return
			}
			if _, ok := puts.take(prefixOf(s.Conn()), v.now()); !ok {
				v.counts.add(refusedPuts)
				_ = s.Reset()
			}
		}),
	}
}

// anyAddress lifts the filters that keep private addresses out of the wide DHT and loopback out of the LAN's.
func anyAddress() []dht.Option {
	return []dht.Option{
		dht.AddressFilter(func(a []ma.Multiaddr) []ma.Multiaddr { return a }),
		dht.QueryFilter(func(_ any, info peer.AddrInfo) bool { return len(info.Addrs) > 0 }),
		dht.RoutingTableFilter(func(any, peer.ID) bool { return true }),
	}
}

// lanProtocol sets the LAN's table apart; it must come after the prefix, which would undo it.
func lanProtocol() dht.Option { return dht.ProtocolExtension(dual.LanExtension) }

// lanRecords is how many records of neighbours a person's node keeps for its local network.
const lanRecords = 512

// putRate and putBurst bound what one address may store at a DHT server.
const (
	putRate  = 2
	putBurst = 64
)

// newDHT makes the front host's two tables: a client in the wide network, a server on the LAN.
func (n *Node) newDHT() (*dual.DHT, error) {
	v := validator{now: n.now, counts: &n.counts}
	store := newCappedStore(dssync.MutexWrap(ds.NewMapDatastore()), lanRecords, 0, &n.counts)
	puts := newRateLimit(putRate, putBurst, n.limits.Prefixes)
	lanMode := dht.ModeServer
	if n.cfg.RelayOnly {
		lanMode = dht.ModeClient
	}
	opts := []dual.Option{
		dual.DHTOption(kadOptions(n.proto.prefix, v, store, n.limits.DHTTimeout, puts)...),
		dual.WanDHTOption(dht.Mode(dht.ModeClient)), dual.LanDHTOption(lanProtocol(), dht.Mode(lanMode)),
	}
	if n.cfg.AllowPrivate {
		opts = append(opts, dual.DHTOption(anyAddress()...))
	}
	return dual.New(n.front, opts...)
}

// serverWait bounds how long publishing and finding wait for a first DHT server when the caller sets no bound.
const serverWait = 10 * time.Second

// errNoServer is a DHT without anyone in it.
var errNoServer = fmt.Errorf("no DHT server in reach: %w", wire.ErrUnreachable)

// waitServer returns once the table holds a server that answered.
func waitServer(ctx context.Context, d *dht.IpfsDHT) error {
	if d.RoutingTable().Size() > 0 {
		return nil
	}
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if d.RoutingTable().Size() > 0 {
				return nil
			}
		case <-ctx.Done():
			return errNoServer
		}
	}
}

// wanReady waits for a DHT server of the wide network, if there is any hope of one.
func (n *Node) wanReady(ctx context.Context) error {
	if n.kad.WAN.RoutingTable().Size() == 0 && !n.known.hope() {
		return errNoServer
	}
	ctx, cancel := context.WithTimeout(ctx, serverWait)
	defer cancel()
	return waitServer(ctx, n.kad.WAN)
}

// Publish puts a record into the wide DHT and the LAN's, each for itself: nil when at least one other node stored it. A server that
// hangs holds up the whole lookup, so after a second those that are connected are asked at once; and when somebody has stored it, the
// rest get a fifth of the caller's time. Whoever has all the time there is gets it stored wherever it belongs.
func (n *Node) Publish(ctx context.Context, name [32]byte, value []byte) error {
	if err := record.Validate(name, value, n.now()); err != nil {
		return fmt.Errorf("publish record: %w", err)
	}
	took := &takers{first: make(chan struct{}, 1)}
	patience, bounded := n.patience(ctx)
	puts, cancel := context.WithCancel(context.WithValue(ctx, takersKey{}, took))
	defer cancel()
	errs := make([]error, 2)
	var wg sync.WaitGroup
	wg.Go(func() {
		if errs[0] = n.wanReady(puts); errs[0] == nil {
			errs[0] = n.kad.WAN.PutValue(puts, record.Key(name), value)
		}
	})
	wg.Go(func() { errs[1] = n.kad.LAN.PutValue(puts, record.Key(name), value) })
	all := make(chan struct{})
	go func() { wg.Wait(); close(all) }()
	slow := time.NewTimer(settleTime)
	defer slow.Stop()
	var stop <-chan time.Time
	var direct sync.WaitGroup
	for waiting := true; waiting; {
		select {
		case <-all:
			waiting = false
		case <-took.first:
			if bounded && stop == nil {
				stop = time.After(patience)
			}
		case <-slow.C:
			if took.count.Load() == 0 {
				n.putDirectly(puts, &direct, name, value)
			}
		case <-stop:
			waiting = false
		}
	}
	cancel()
	<-all
	direct.Wait()
	if took.count.Load() > 0 {
		return nil
	}
	return fmt.Errorf("publish record: nobody stored it: %w: %w", errors.Join(errs...), wire.ErrUnreachable)
}

// patience is how long those who have not stored a record are waited for once somebody has.
func (n *Node) patience(ctx context.Context) (time.Duration, bool) {
	end, ok := ctx.Deadline()
	return end.Sub(n.clock.Now()) / 5, ok
}

// putDirectly puts a record at the servers that are connected, without asking who else there is.
func (n *Node) putDirectly(ctx context.Context, wg *sync.WaitGroup, name [32]byte, value []byte) {
	k := &kadSender{h: n.front, ids: []protocol.ID{n.proto.kad}, timeout: n.limits.DHTTimeout}
	m := pb.NewMessage(pb.Message_PUT_VALUE, []byte(record.Key(name)), 0)
	m.Record = libp2precord.MakePutRecord(record.Key(name), value)
	for _, p := range n.kad.WAN.RoutingTable().ListPeers() {
		if connected(n.front.Network(), p) {
			wg.Go(func() {
				if _, err := k.SendRequest(ctx, p, m); err != nil {
					n.log.Debug("record not stored", "peer", short(p), "err", err)
				}
			})
		}
	}
}

// settleTime is how long Find waits for a newer record once it holds one.
const settleTime = time.Second

// Find looks a record up in both DHTs and returns the newest found: ErrNotFound when servers answered that there is
// none, ErrUnreachable when nobody could be asked.
func (n *Node) Find(ctx context.Context, name [32]byte) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		value []byte
		err   error
	}
	results := make(chan result, 2)
	search := func(d *dht.IpfsDHT, ready func(context.Context) error) {
		if err := ready(ctx); err != nil {
			results <- result{err: err}
			return
		}
		value, err := n.search(ctx, d, name, settleTime)
		results <- result{value, err}
	}
	var wg sync.WaitGroup
	wg.Go(func() { search(n.kad.WAN, n.wanReady) })
	wg.Go(func() { search(n.kad.LAN, n.lanReady) })
	defer wg.Wait()
	defer cancel()
	var values [][]byte
	var errs []error
	for range 2 {
		r := <-results
		if r.err == nil {
			values = append(values, r.value)
		} else {
			errs = append(errs, r.err)
		}
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("find record: %w", weigh(errs))
	}
	best, err := record.Select(values)
	if err != nil {
		return nil, fmt.Errorf("find record: %w", err)
	}
	return values[best], nil
}

func (n *Node) lanReady(context.Context) error {
	if n.kad.LAN.RoutingTable().Size() == 0 {
		return errNoServer
	}
	return nil
}

// search asks one DHT; each value was validated by then. It ends when the lookup does, or settle after the first value.
func (n *Node) search(ctx context.Context, d *dht.IpfsDHT, name [32]byte, settle time.Duration) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found, err := d.SearchValue(ctx, record.Key(name), dht.Quorum(8))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, wire.ErrUnreachable)
	}
	var best []byte
	var enough <-chan time.Time
	for {
		select {
		case v, ok := <-found:
			if !ok {
				if best != nil {
					return best, nil
				}
				if err := ctx.Err(); err != nil {
					return nil, fmt.Errorf("%w: %w", err, wire.ErrUnreachable)
				}
				return nil, wire.ErrNotFound
			}
			if best = v; enough == nil {
				if settle <= 0 {
					return best, nil
				}
				enough = time.After(settle)
			}
		case <-enough:
			return best, nil
		}
	}
}

// weigh picks what to tell when nothing was found: "not there" from someone who was asked says more than silence.
func weigh(errs []error) error {
	for _, e := range errs {
		if errors.Is(e, wire.ErrNotFound) {
			return e
		}
	}
	if len(errs) == 0 {
		return wire.ErrUnreachable
	}
	return errors.Join(errs...)
}

// lanWait is how long Fetch keeps asking neighbours that appear meanwhile: mDNS needs a moment after the start.
const lanWait = 4 * time.Second

// Fetch gets an invite's record from whoever has it first: both DHTs, the volunteers or the inviter's front host named
// by hints, and neighbours on the local network. A hint is a multiaddr with /p2p; which kind it is shows when connected.
func (n *Node) Fetch(ctx context.Context, name [32]byte, hints []string) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tried := make(chan struct{}) // closed when every hint was connected to or given up
	var trying sync.WaitGroup
	sources := []func(context.Context) ([]byte, error){
		func(ctx context.Context) ([]byte, error) { return n.fetchWAN(ctx, name, tried) },
		func(ctx context.Context) ([]byte, error) { return n.fetchLAN(ctx, name) },
		func(ctx context.Context) ([]byte, error) { return n.fetchNeighbours(ctx, name) },
	}
	for _, h := range hints {
		trying.Add(1)
		sources = append(sources, func(ctx context.Context) ([]byte, error) { return n.fetchHint(ctx, name, h, trying.Done) })
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { trying.Wait(); close(tried) })
	type result struct {
		value []byte
		err   error
	}
	results := make(chan result, len(sources))
	for _, get := range sources {
		wg.Go(func() {
			value, err := get(ctx)
			if err == nil {
				err = record.Validate(name, value, n.now())
			}
			results <- result{value, err}
		})
	}
	var errs []error
	for range sources {
		r := <-results
		if r.err == nil {
			return r.value, nil
		}
		errs = append(errs, r.err)
	}
	return nil, fmt.Errorf("fetch record: %w", weigh(errs))
}

// fetchWAN waits for a DHT server as long as one is configured or a hint may yet turn out to be one.
func (n *Node) fetchWAN(ctx context.Context, name [32]byte, tried <-chan struct{}) ([]byte, error) {
	wait, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		select {
		case <-tried:
			if !n.known.anyDHT() {
				stop()
			}
		case <-wait.Done():
		}
	})
	if err := waitServer(wait, n.kad.WAN); err != nil {
		return nil, err
	}
	return n.search(ctx, n.kad.WAN, name, 0)
}

func (n *Node) fetchLAN(ctx context.Context, name [32]byte) ([]byte, error) {
	if n.cfg.MDNS {
		wait, cancel := context.WithTimeout(ctx, lanWait)
		defer cancel()
		if err := waitServer(wait, n.kad.LAN); err != nil {
			return nil, err
		}
	} else if err := n.lanReady(ctx); err != nil {
		return nil, err
	}
	return n.search(ctx, n.kad.LAN, name, 0)
}

func (n *Node) fetchHint(ctx context.Context, name [32]byte, hint string, tried func()) ([]byte, error) {
	if n.cfg.RelayOnly && !strings.Contains(hint, "/p2p-circuit") {
		tried()
		return nil, fmt.Errorf("hint %s would show our address to whoever made the link: %w", hint, wire.ErrUnreachable)
	}
	p, err := n.connectFront(ctx, hint)
	tried()
	if err != nil {
		return nil, err
	}
	if ok, _ := n.front.Peerstore().SupportsProtocols(p, n.proto.knock); len(ok) == 0 {
		return nil, errNoServer // a volunteer: the DHT will tell
	}
	return n.knockGet(ctx, p, name)
}

// Connect reaches a volunteer's DHT host or another person's front host by its address and uses it as what it is.
func (n *Node) Connect(ctx context.Context, addr string) error {
	_, err := n.connectFront(ctx, addr)
	return err
}

func (n *Node) connectFront(ctx context.Context, addr string) (peer.ID, error) {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return "", fmt.Errorf("address %q: %w (want a multiaddr that ends in /p2p/ and a peer id)", addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, n.limits.DialTimeout)
	defer cancel()
	n.clearBackoff(n.front, info.ID)
	if err := n.front.Connect(network.WithAllowLimitedConn(ctx, "hint"), *info); err != nil {
		return "", fmt.Errorf("connect to %s: %w: %w", addr, err, wire.ErrUnreachable)
	}
	if ok, _ := n.front.Peerstore().SupportsProtocols(info.ID, n.proto.kad); len(ok) > 0 {
		n.known.pin(*info)
		wake(n.bootWake)
	}
	return info.ID, nil
}

// takers counts the servers that took a put: kad-dht itself does not tell.
type takers struct {
	count atomic.Int32
	first chan struct{} // has a token when there are some
}

// takersKey is the context key of a put's takers.
type takersKey struct{}

// kadSender carries DHT requests, one stream each: nothing lingers while idle.
type kadSender struct {
	h       host.Host
	ids     []protocol.ID
	timeout time.Duration
}

// maxKadAnswer bounds what a DHT server may answer: one record and twenty peers with their addresses.
const maxKadAnswer = 128 << 10

// SendRequest asks and waits for the answer.
func (k *kadSender) SendRequest(ctx context.Context, p peer.ID, req *pb.Message) (*pb.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	start := time.Now()
	s, err := k.send(ctx, p, req)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	r := msgio.NewVarintReaderSize(s, maxKadAnswer)
	b, err := r.ReadMsg()
	if err != nil {
		_ = s.Reset()
		return nil, err
	}
	defer r.ReleaseMsg(b)
	answer := new(pb.Message)
	if err := proto.Unmarshal(b, answer); err != nil {
		_ = s.Reset()
		return nil, err
	}
	_ = s.Close()
	k.h.Peerstore().RecordLatency(p, time.Since(start))
	if took, ok := ctx.Value(takersKey{}).(*takers); ok && req.GetType() == pb.Message_PUT_VALUE {
		took.count.Add(1)
		wake(took.first)
	}
	return answer, nil
}

// SendMessage sends without waiting.
func (k *kadSender) SendMessage(ctx context.Context, p peer.ID, m *pb.Message) error {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	s, err := k.send(ctx, p, m)
	if err != nil {
		return err
	}
	return s.Close()
}

// OnDisconnect has nothing to drop.
func (k *kadSender) OnDisconnect(context.Context, peer.ID) {}

func (k *kadSender) send(ctx context.Context, p peer.ID, m *pb.Message) (network.Stream, error) {
	s, err := k.h.NewStream(ctx, p, k.ids...)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		_ = s.SetDeadline(d)
	}
	if err := writeDelimited(s, m); err != nil {
		_ = s.Reset()
		return nil, err
	}
	return s, nil
}

// writeDelimited writes varint length || message, kad-dht's own framing, in one write.
func writeDelimited(w io.Writer, m *pb.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.AppendUvarint(make([]byte, 0, len(b)+4), uint64(len(b))), b...))
	return err
}

// cappedStore refuses new records beyond its limit; those it holds can still be renewed.
type cappedStore struct {
	ds.Batching
	max    int
	counts *counters

	mu    sync.Mutex
	count int
}

var errStoreFull = errors.New("record store is full")

func newCappedStore(inner ds.Batching, max, count int, counts *counters) *cappedStore {
	return &cappedStore{Batching: inner, max: max, count: count, counts: counts}
}

// countRecords is how many a store held when it was opened.
func countRecords(ctx context.Context, s ds.Batching) (int, error) {
	res, err := s.Query(ctx, dsq.Query{KeysOnly: true})
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Close() }()
	count := 0
	for r := range res.Next() {
		if r.Error != nil {
			return 0, r.Error
		}
		count++
	}
	return count, nil
}

// Put stores a record if there is room for it.
func (c *cappedStore) Put(ctx context.Context, key ds.Key, value []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	has, err := c.Batching.Has(ctx, key)
	if err != nil {
		return err
	}
	if !has && c.count >= c.max {
		c.counts.add(refusedStored)
		return errStoreFull
	}
	if err := c.Batching.Put(ctx, key, value); err != nil {
		return err
	}
	if !has {
		c.count++
	}
	return nil
}

// Delete drops a record.
func (c *cappedStore) Delete(ctx context.Context, key ds.Key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	has, err := c.Batching.Has(ctx, key)
	if err != nil || !has {
		return err
	}
	if err := c.Batching.Delete(ctx, key); err != nil {
		return err
	}
	c.count--
	return nil
}

func (c *cappedStore) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}
