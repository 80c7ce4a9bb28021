// Package messenger is the core: it accepts, seals, delivers, receives and shows messages, and keeps contacts and invites.
//
// A message's way out is send.go (accept), outbox.go (when), deliver.go (how); its way in is receive.go (open) and
// apply.go (what it means). Whatever changes does so in one store transaction; whatever is news leaves by the store's
// numbered log (event.go). Nothing here knows libp2p: the network is the port below.
package messenger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/identity"
	"sotto/internal/clock"
	"sotto/internal/fault"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// Network is what the messenger asks of the node. Failures are the sentinels of package wire.
type Network interface {
	// Send offers items to a device's inner host in their order. It calls settled once for each item that was answered
	// and returns why the others were not, nil when all were.
	Send(ctx context.Context, to wire.Reach, items [][]byte, settled func(i int, a wire.Answer)) error
	// Knock hands one envelope to a device's front host; the invite's name spares the stamp, zeros for none.
	Knock(ctx context.Context, at wire.Reach, invite [32]byte, envelope []byte) (wire.KnockAnswer, error)
	// Fetch finds the invite record of that name: in both DHTs, at the hints, at neighbours on the LAN.
	Fetch(ctx context.Context, name [32]byte, hints []string) ([]byte, error)
	// Publish puts a record into the DHTs; nil when at least one took it.
	Publish(ctx context.Context, name [32]byte, value []byte) error
	// Find gets the newest valid record of that name.
	Find(ctx context.Context, name [32]byte) ([]byte, error)
	// Admit names all inner keys that may connect.
	Admit(inner [][32]byte)
	// Touch connects to a contact so that both know the other is there.
	Touch(ctx context.Context, to wire.Reach) error
	// Reach says where this node is now; Seq is the messenger's to fill.
	Reach() wire.Reach
	// ClockOffset is how far others' clocks are ahead of this machine's; false while too few were asked.
	ClockOffset() (time.Duration, bool)
}

// Limits bounds what the messenger holds, waits and tries. The zero value of a field means its default.
type Limits struct {
	Window        int           // items offered to one recipient at a time
	RetryMin      time.Duration // first pause after a failed delivery, doubled up to RetryMax
	RetryMax      time.Duration
	GapWait       time.Duration // how long a message waits for the ones before it until the gap is shown
	MaxHeld       int           // messages of one device that may wait for the ones before them
	OutboxAge     time.Duration // how long a message is tried unless its sender says otherwise
	InviteLife    time.Duration
	MaxInvite     time.Duration
	MaxInvites    int           // live invites at a time
	Touch         int           // contacts greeted at the start
	ResetEvery    time.Duration // pause between two session resets with one device
	MaxSessions   int           // sessions per device pair
	MaxUnacked    int           // sealed items of one recipient without an answer
	MaxRequests   int           // strangers waiting for an answer
	MaxHandshakes int           // handshakes remembered under one signed prekey
	Republish     time.Duration
	NodeKeyAge    time.Duration
	PrekeyAge     time.Duration // how long a signed prekey is published
	PrekeyLife    time.Duration // how long its private half is kept
	CardLife      time.Duration
	SessionLife   time.Duration // how long an archived session is kept
	PublishAfter  time.Duration // how long changes of reach are gathered
	Boxes         int           // mailboxes to have, chosen by the program if the person chose fewer; negative: choose none
	Tokens        int           // deposits a contact may make before it is told more
	Hedge         time.Duration // how long the direct way is tried before mailboxes are used, too
	DeadAfter     time.Duration // how long a mailbox that the program chose may not answer before another takes its place
	RenewBefore   time.Duration // how long before a mailbox's promise ends the entry is left there anew
}

func (l Limits) withDefaults() Limits {
	day := 24 * time.Hour
	set(&l.Window, 1024)
	set(&l.RetryMin, time.Second)
	set(&l.RetryMax, 5*time.Minute)
	set(&l.GapWait, 10*time.Second)
	set(&l.MaxHeld, 1000)
	set(&l.OutboxAge, 30*day)
	set(&l.InviteLife, day)
	set(&l.MaxInvite, 30*day)
	set(&l.MaxInvites, 64)
	set(&l.Touch, 8)
	set(&l.ResetEvery, day)
	set(&l.MaxSessions, 4)
	set(&l.MaxUnacked, 5000)
	set(&l.MaxRequests, 64)
	set(&l.MaxHandshakes, 15_000)
	set(&l.Republish, 8*time.Hour)
	set(&l.NodeKeyAge, 30*day)
	set(&l.PrekeyAge, 7*day)
	set(&l.PrekeyLife, 45*day)
	set(&l.CardLife, 30*day)
	set(&l.SessionLife, 45*day)
	set(&l.PublishAfter, 2*time.Second)
	set(&l.Boxes, identity.MaxBoxes)
	set(&l.Tokens, 256)
	set(&l.Hedge, time.Second)
	set(&l.RenewBefore, 3*day)
	set(&l.DeadAfter, 3*day)
	return l
}

func set[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}

// Config holds the choices; the zero value works.
type Config struct {
	Clock  clock.Clock
	Rand   io.Reader // crypto/rand unless a test fixes it
	Log    *slog.Logger
	Fault  *fault.Points
	Limits Limits
}

// Messenger is the core of one person's node on one device.
type Messenger struct {
	store   *store.Store
	account *identity.Account
	clock   clock.Clock
	rand    io.Reader
	log     *slog.Logger
	fault   *fault.Points
	limits  Limits

	outbox   *outbox
	unacked  *unacked
	holder   *holder
	boxes    changes // kicks what looks after our boxes
	counters counters
	gaps     chan struct{} // kicks runGaps
	crowded  chan struct{} // kicks runCrowded
	moved    chan struct{} // kicks runPublish
	adds     chan struct{} // kicks runAdds

	mu     sync.Mutex // guards what follows; never held across a store transaction
	self   self
	inner  map[[32]byte][]identity.AccountID // who says that it is their node key, of all contacts that may connect
	net    Network                           // nil until Run
	mail   Mailboxes                         // nil until Run, or for good
	reach  wire.Reach                        // where this node is; Seq 0 until the network was asked
	chosen map[identity.AccountID][16]byte   // the session last chosen for sending
	signed []byte                            // the same, signed
	offset time.Duration                     // others' clocks against ours
	age    age                               // whether the clock may be believed when something is to be deleted
	adding map[[16]byte]*attempt             // invites being followed right now
}

// self is who this device is, read once and replaced when keys rotate.
type self struct {
	device *identity.Device
	list   []byte // signed device list
	card   []byte // current card
	cardN  uint64 // its number
}

// ErrNoIdentity means that the store holds no device yet: run Init.
var ErrNoIdentity = errors.New("the store holds no identity")

// New opens the messenger over a store in which Init has made a device.
func New(st *store.Store, account *identity.Account, cfg Config) (*Messenger, error) {
	m := &Messenger{
		store: st, account: account, clock: cfg.Clock, rand: cfg.Rand, log: cfg.Log, fault: cfg.Fault,
		limits: cfg.Limits.withDefaults(), outbox: newOutbox(), unacked: newUnacked(), holder: newHolder(), gaps: make(chan struct{}, 1), crowded: make(chan struct{}, 1), moved: make(chan struct{}, 1), adds: make(chan struct{}, 1),
		inner: map[[32]byte][]identity.AccountID{}, adding: map[[16]byte]*attempt{}, chosen: map[identity.AccountID][16]byte{},
	}
	m.fillPorts()
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("open the messenger: %w", err)
	}
	return m, nil
}

// fillPorts gives the ports that were left out their ordinary meaning.
func (m *Messenger) fillPorts() {
	if m.clock == nil {
		m.clock = clock.System{}
	}
	if m.rand == nil {
		m.rand = rand.Reader
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
}

// load reads the device, brings sessions up to the send floor and collects who may connect. On a full disk it only reads:
// nothing is sent then, and later the store refuses the counters that were not brought up.
func (m *Messenger) load() error {
	err := m.store.Update(func(tx *store.Tx) error {
		row, device, err := m.loadSelf(tx)
		if err != nil {
			return err
		}
		if err := m.noteClock(tx, 0); err != nil {
			return err
		}
		if err := m.rotateNodeKey(tx, device, &row); err != nil {
			return err
		}
		return m.upkeep(tx)
	})
	for _, next := range []func() error{m.raiseFloors, m.forgetAll, func() error { return m.store.View(m.loadContacts) }} {
		if err == nil {
			err = next()
		}
	}
	if !errors.Is(err, store.ErrFull) && !errors.Is(err, store.ErrDamaged) && !errors.Is(err, store.ErrReadOnly) {
		return err
	}
	m.log.Warn("nothing can be written: reading only", "err", err)
	return m.store.View(func(tx *store.Tx) error {
		if _, _, err := m.loadSelf(tx); err != nil {
			return err
		}
		return m.loadContacts(tx)
	})
}

func (m *Messenger) loadSelf(tx *store.Tx) (store.Self, *identity.Device, error) {
	row, err := tx.GetSelf()
	if errors.Is(err, store.ErrNotFound) {
		return row, nil, ErrNoIdentity
	}
	if err != nil {
		return row, nil, err
	}
	if row.AccountPublic != [32]byte(m.account.ID()) {
		return row, nil, errors.New("the database belongs to another account than the key file: put the files of one home together again")
	}
	device, err := identity.ParseDevice(row.DeviceSecret)
	m.self = self{device: device, list: row.DeviceList, card: row.Card, cardN: row.CardSeq}
	return row, device, err
}

func (m *Messenger) loadContacts(tx *store.Tx) error {
	contacts, err := tx.Contacts()
	if err != nil {
		return err
	}
	for _, c := range contacts {
		m.remember(c)
	}
	return nil
}

// remember keeps the contact's node key among those that may connect, or drops it. A key may be claimed by several: a
// contact that names another's key as its own must not take that one's place.
func (m *Messenger) remember(c store.Contact) {
	acct := identity.AccountID(c.Account)
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, claims := range m.inner {
		m.inner[key] = slices.DeleteFunc(slices.Clone(claims), func(a identity.AccountID) bool { return a == acct })
		if len(m.inner[key]) == 0 {
			delete(m.inner, key)
		}
	}
	if reach, err := contactReach(c); err == nil && mayConnect(c) {
		m.inner[reach.InnerKey] = append(m.inner[reach.InnerKey], acct)
	}
	if m.net != nil {
		m.net.Admit(m.admitted())
	}
}

func (m *Messenger) admitted() [][32]byte {
	keys := make([][32]byte, 0, len(m.inner))
	for key := range m.inner {
		keys = append(keys, key)
	}
	return keys
}

func mayConnect(c store.Contact) bool {
	return c.State == ContactInvited || c.State == ContactEstablished
}

// Run delivers what is queued, takes what waits at our mailboxes, keeps keys and records fresh and follows pending invites until the
// context ends. Without boxes it knows no mailboxes.
func (m *Messenger) Run(ctx context.Context, net Network, boxes Mailboxes) error {
	m.mu.Lock()
	m.net, m.mail = net, boxes
	net.Admit(m.admitted())
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.net, m.mail = nil, nil
		m.mu.Unlock()
	}()
	g, work := errgroup.WithContext(ctx)
	g.Go(func() error { return m.runOutbox(work, net) })
	g.Go(func() error { return m.runPublish(work, net) })
	g.Go(func() error { return m.runUpkeep(work) })
	g.Go(func() error { return m.runCrowded(work) })
	g.Go(func() error { return m.runGaps(work) })
	g.Go(func() error { return m.runAdds(work, net) })
	g.Go(func() error { return m.greet(work, net) })
	if boxes != nil {
		g.Go(func() error { return m.runHold(work, boxes) })
		g.Go(func() error { return m.runBoxes(work, boxes) })
	}
	err := g.Wait()
	if ctx.Err() != nil { // asked to end; work is over in any case by now
		return nil
	}
	return err
}

// network returns the port while Run is at work.
func (m *Messenger) network() (Network, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.net, m.net != nil
}

// NodeKey is the key the node's inner host must use.
func (m *Messenger) NodeKey() NodeKey { return m.current().device.NodeKey() }

func (m *Messenger) current() self {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.self
}

func (m *Messenger) local() session.Local {
	s := m.current()
	return session.Local{Device: s.device, Account: m.account.ID(), Devices: s.list}
}

// now is wall time corrected by what others report, for day keys and expiry. Never for order, which comes
// from counters, and never to delete: others may lie (PROTOCOL 13.6).
func (m *Messenger) now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clock.Now().Add(m.offset)
}

// greet tells the contacts spoken with last that this node is here, so that what they hold for it comes at once.
func (m *Messenger) greet(ctx context.Context, net Network) error {
	var reaches []wire.Reach
	err := m.store.View(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		newestFirst(contacts)
		for _, c := range contacts {
			if reach, err := contactReach(c); err == nil && mayConnect(c) && len(reaches) < m.limits.Touch {
				reaches = append(reaches, reach)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, reach := range reaches {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, touchTimeout)
			defer cancel()
			if err := net.Touch(ctx, reach); err != nil {
				m.log.Debug("contact not reached at the start", "err", err)
			}
			return nil
		})
	}
	return g.Wait()
}

// waitOr waits for d, for a token on kick, or for the context's end, which alone is an error.
func (m *Messenger) waitOr(ctx context.Context, d time.Duration, kick <-chan struct{}) error {
	waited, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan error, 1)
	go func() { over <- m.clock.Wait(waited, d) }()
	select {
	case <-kick:
		cancel()
		<-over
		return ctx.Err()
	case <-over:
		return ctx.Err()
	}
}

// poke leaves a token for a loop that waits on the channel.
func poke(kick chan struct{}) {
	select {
	case kick <- struct{}{}:
	default:
	}
}
