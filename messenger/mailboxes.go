package messenger

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/identity"
	"sotto/store"
	"sotto/wire"
)

// Mail for the absent (PROTOCOL 17) touches the messenger in five files: this one has our own boxes at volunteers' mailboxes, tend.go keeps each in
// order, grant.go hands out the right to leave mail in them, hold.go leaves mail at others' mailboxes, collect.go takes ours.

// Mailboxes is what the messenger asks of volunteers' mailboxes. An address is a binary multiaddr that ends in the mailbox's peer id.
// Failures are the sentinels of package wire.
type Mailboxes interface {
	// ParseAddr reads an address as people write it, and the mailbox's key out of it.
	ParseAddr(text string) (addr []byte, service [32]byte, err error)
	// FormatAddr is what ParseAddr reads.
	FormatAddr(addr []byte) string
	// Terms asks a mailbox what it offers.
	Terms(ctx context.Context, addr []byte) (wire.Terms, error)
	// Deposit leaves an envelope and returns the mailbox's verified receipt.
	Deposit(ctx context.Context, addr []byte, d wire.Deposit) (wire.Custody, error)
	// Open connects to a mailbox as the owner of the box with that key, registered or not.
	Open(ctx context.Context, addr []byte, key ed25519.PrivateKey) (BoxStream, error)
	// Known lists mailboxes that volunteers or neighbours told of.
	Known() []KnownMailbox
}

// KnownMailbox is a mailbox that may be asked; Net names the part of the Internet it is in, so that not all of ours fail at once.
type KnownMailbox struct {
	Addr []byte
	Net  string
}

// BoxStream is a connection to a box of our own. Its methods are called one at a time.
type BoxStream interface {
	Register(ctx context.Context, a wire.Admission) (wire.Standing, error)
	Standing(ctx context.Context) (wire.Standing, error)
	Pool(ctx context.Context, add, drop [][16]byte) error
	// Wait returns mail above after, or none when the time is over.
	Wait(ctx context.Context, after uint64, most int, within time.Duration) (wire.Page, error)
	Ack(ctx context.Context, ids []uint64) error
	Republish(ctx context.Context, list []wire.Republish) error
	Remove(ctx context.Context) error
	Close() error
}

// States of a box of ours.
const (
	BoxNew     = "new"     // not registered yet
	BoxOpen    = "open"    // takes mail
	BoxLeaving = "leaving" // given up: no card names it any more; read until nobody can have an old card
)

// How boxes are looked after.
const (
	tendEvery   = time.Hour              // standing, tokens, records
	waitFor     = 10 * time.Minute       // a WAIT that brings nothing
	searchMin   = 250 * time.Millisecond // until volunteers are looked for again, doubled up to boxRetryMax
	boxRetryMin = 2 * time.Second
	boxRetryMax = 5 * time.Minute
	askTimeout  = 30 * time.Second
)

// runBoxes keeps a collector and a tender for each of our boxes, and chooses mailboxes while there are too few.
func (m *Messenger) runBoxes(ctx context.Context, boxes Mailboxes) error {
	g, ctx := errgroup.WithContext(ctx)
	running := map[[32]byte]context.CancelFunc{}
	changed := m.boxes.watch()
	defer m.boxes.unwatch(changed)
	pause := searchMin
	for {
		missing, err := m.chooseBoxes(ctx, boxes)
		if err != nil && !passing(err) {
			return errors.Join(err, g.Wait())
		}
		rows, err := m.ownBoxes()
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		for _, row := range rows {
			if running[row.ID] == nil {
				boxed, cancel := context.WithCancel(ctx)
				running[row.ID] = cancel
				g.Go(func() error { return m.tend(boxed, boxes, row.ID) })
				g.Go(func() error { return m.collect(boxed, boxes, row.ID) })
			}
		}
		for id, cancel := range running {
			if !slices.ContainsFunc(rows, func(row store.Box) bool { return row.ID == id }) {
				cancel()
				delete(running, id)
			}
		}
		next := tendEvery
		if missing > 0 { // volunteers may become known any moment
			next, pause = jitter(pause), min(2*pause, boxRetryMax)
		} else {
			pause = searchMin
		}
		if err := m.waitOr(ctx, next, changed); err != nil {
			return g.Wait()
		}
	}
}

// passing reports whether an error of the store's is one that the next try may not meet.
func passing(err error) bool { return errors.Is(err, store.ErrFull) }

func (m *Messenger) ownBoxes() (rows []store.Box, err error) {
	err = m.store.View(func(tx *store.Tx) error {
		rows, err = tx.Boxes()
		return err
	})
	return rows, err
}

// chooseBoxes begins boxes at mailboxes that are known, until there are as many as wanted, the ones that answer first in networks where we have none
// yet; one that has not answered for days makes room when another does. It returns how many are missing still.
func (m *Messenger) chooseBoxes(ctx context.Context, boxes Mailboxes) (missing int, err error) {
	rows, err := m.ownBoxes()
	if err != nil || m.limits.Boxes < 0 {
		return 0, err
	}
	have, nets := map[[32]byte]bool{}, map[string]bool{}
	live := 0
	var dead []store.Box
	for _, row := range rows {
		have[row.Service] = true
		switch {
		case row.State == BoxLeaving:
		case row.Chosen && !row.Failing.IsZero() && m.clock.Now().Sub(row.Failing) > m.limits.DeadAfter:
			dead = append(dead, row)
		default:
			live, nets[row.Net] = live+1, true
		}
	}
	if missing = m.limits.Boxes - live; missing <= 0 {
		return 0, nil
	}
	offers := m.askAll(ctx, boxes, have)
	for _, fresh := range []bool{true, false} { // other networks first
		for _, o := range offers {
			if missing <= 0 || have[o.terms.Service] || fresh && nets[o.Net] {
				continue
			}
			if live+len(dead) >= m.limits.Boxes && len(dead) > 0 {
				if err := m.leaveBox(ctx, dead[0].ID); err != nil {
					return missing, err
				}
				dead = dead[1:]
			}
			if _, err := m.addBox(ctx, store.Box{Addr: boxes.FormatAddr(o.Addr), Raw: o.Addr, Net: o.Net, Service: o.terms.Service, Chosen: true}); err != nil {
				return missing, err
			}
			have[o.terms.Service], nets[o.Net] = true, true
			live, missing = live+1, missing-1
		}
	}
	return missing, nil
}

// offer is a mailbox that would take us.
type offer struct {
	KnownMailbox
	terms wire.Terms
	took  time.Duration
}

// askAll asks known mailboxes for their terms, some at a time; those that would take us come back, the quickest first.
func (m *Messenger) askAll(ctx context.Context, boxes Mailboxes, have map[[32]byte]bool) []offer {
	var g errgroup.Group
	g.SetLimit(8)
	var mu sync.Mutex // guards list
	var list []offer
	for _, known := range boxes.Known() {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, termsTimeout)
			defer cancel()
			begun := m.clock.Now()
			terms, err := boxes.Terms(ctx, known.Addr)
			if err != nil || have[terms.Service] || terms.Mode != wire.ModeOpen || terms.DrainUntil != 0 || terms.RegisterBits > maxRegisterBits {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			list = append(list, offer{KnownMailbox{known.Addr, known.Net}, terms, m.clock.Now().Sub(begun)})
			return nil
		})
	}
	_ = g.Wait()
	slices.SortStableFunc(list, func(a, b offer) int { return cmp.Compare(a.took, b.took) })
	return list
}

// termsTimeout bounds the asking of a mailbox that may not be there any more.
const termsTimeout = 10 * time.Second

// maxRegisterBits is how much work a box may cost: seconds, not minutes.
const maxRegisterBits = 24

// AddMailbox begins a box at a mailbox the person names; the voucher is what its operator gave, if anything.
func (m *Messenger) AddMailbox(ctx context.Context, addr, voucher string) (Mailbox, error) {
	m.mu.Lock()
	boxes := m.mail
	m.mu.Unlock()
	if boxes == nil {
		return Mailbox{}, refuse(CodeOffline, "Start the node with its network: sotto up", "this node is offline")
	}
	bad := func(err error) (Mailbox, error) {
		return Mailbox{}, &Error{Code: CodeBadMailbox, Message: err.Error(), Remedy: "Give the mailbox's address as its operator shares it, such as /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3…", Err: err}
	}
	raw, service, err := boxes.ParseAddr(addr)
	if err != nil {
		return bad(err)
	}
	if len(raw) > identity.MaxBoxAddr {
		return bad(fmt.Errorf("an address of %d bytes, at most %d", len(raw), identity.MaxBoxAddr))
	}
	if len(voucher) > wire.MaxVoucher {
		return bad(fmt.Errorf("a voucher of %d bytes, at most %d", len(voucher), wire.MaxVoucher))
	}
	rows, err := m.ownBoxes()
	if err != nil {
		return Mailbox{}, err
	}
	live := 0
	for _, row := range rows {
		if row.Service == service && row.State != BoxLeaving {
			return Mailbox{}, refuse(CodeMailboxKnown, "See: sotto mailboxes list", "this mailbox is yours already")
		}
		if row.State != BoxLeaving {
			live++
		}
	}
	if live >= identity.MaxBoxes {
		return Mailbox{}, refuse(CodeTooMany, "Drop one first: sotto mailboxes list", "%d mailboxes are yours already", live)
	}
	row, err := m.addBox(ctx, store.Box{Addr: addr, Raw: raw, Service: service, Voucher: []byte(voucher)})
	return m.viewBox(row), err
}

// addBox draws a key for a box and keeps it; its tender registers it.
func (m *Messenger) addBox(ctx context.Context, row store.Box) (store.Box, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(m.rand, seed); err != nil {
		return row, fmt.Errorf("draw a box key: %w", err)
	}
	row.Key, row.State, row.Created = seed, BoxNew, m.clock.Now()
	row.ID = wire.NewBoxID(row.Service, boxPublic(row))
	return row, m.update(ctx, func(tx *store.Tx) error {
		tx.AfterCommit(m.boxes.poke)
		return tx.PutBox(row)
	})
}

func boxKey(row store.Box) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(row.Key) }

func boxPublic(row store.Box) [32]byte { return [32]byte(boxKey(row).Public().(ed25519.PublicKey)) }

// DropMailbox gives a box up: contacts are told a card without it, and it is read until mail to it must have come.
func (m *Messenger) DropMailbox(ctx context.Context, which string) (Mailbox, error) {
	var gone store.Box
	err := m.update(ctx, func(tx *store.Tx) error {
		rows, err := tx.Boxes()
		if err != nil {
			return err
		}
		if gone, err = findBox(rows, which); err != nil {
			return err
		}
		if gone.State == BoxNew {
			tx.AfterCommit(func() { m.boxes.poke() })
			return tx.DeleteBox(gone.ID)
		}
		gone, err = m.letGo(tx, gone)
		return err
	})
	if err == nil {
		err = m.tellAll()
	}
	return m.viewBox(gone), err
}

// letGo gives a box up. Its time as one that is left begins now.
func (m *Messenger) letGo(tx *store.Tx, row store.Box) (store.Box, error) {
	row.State, row.Failing = BoxLeaving, m.clock.Now()
	tx.AfterCommit(m.boxes.poke)
	if err := tx.PutBox(row); err != nil {
		return row, err
	}
	return row, m.resignCard(tx)
}

// leaveBox gives up a box that we chose.
func (m *Messenger) leaveBox(ctx context.Context, id [32]byte) error {
	return m.update(ctx, func(tx *store.Tx) error {
		row, err := tx.Box(id)
		if err == nil {
			_, err = m.letGo(tx, row)
		}
		return err
	})
}

// findBox finds the box a person means: by the beginning of its id, or by its address.
func findBox(rows []store.Box, which string) (store.Box, error) {
	var fit []store.Box
	for _, row := range rows {
		if row.Addr == which || which != "" && len(which) >= 4 && boxShort(row.ID, len(which)) == which {
			fit = append(fit, row)
		}
	}
	switch len(fit) {
	case 0:
		return store.Box{}, refuse(CodeMailboxNotFound, "See all: sotto mailboxes list", "you have no mailbox %q", which)
	case 1:
		return fit[0], nil
	}
	return store.Box{}, refuse(CodeAmbiguous, "Type more of it: sotto mailboxes list", "%q fits several mailboxes", which)
}

func boxShort(id [32]byte, n int) string { return fmt.Sprintf("%x", id)[:min(n, 64)] }

// Mailboxes lists our boxes, oldest first.
func (m *Messenger) Mailboxes(ctx context.Context) ([]Mailbox, error) {
	rows, err := m.ownBoxes()
	slices.SortFunc(rows, func(a, b store.Box) int { return a.Created.Compare(b.Created) })
	var out []Mailbox
	for _, row := range rows {
		out = append(out, m.viewBox(row))
	}
	return out, err
}

func (m *Messenger) viewBox(row store.Box) Mailbox {
	out := Mailbox{
		ID: boxShort(row.ID, 8), Addr: row.Addr, State: row.State, Ready: row.Ready, Chosen: row.Chosen, Since: row.Created, Seen: row.Seen, Failing: row.Failing, Why: row.Why,
		Quota: row.Quota, Used: row.Used, Days: row.Days,
	}
	if len(row.Key) == ed25519.SeedSize {
		public := boxPublic(row)
		out.Key = fmt.Sprintf("%x", sha256.Sum256(public[:]))
	}
	return out
}

// resignCard signs the card anew when our boxes changed; prekey and dates stay.
func (m *Messenger) resignCard(tx *store.Tx) error {
	row, err := tx.GetSelf()
	if err != nil {
		return err
	}
	card, err := identity.ParseCard(row.Card)
	if err != nil {
		return fmt.Errorf("read our card: %w", err)
	}
	core := card.Core
	if core.Boxes, err = m.cardBoxes(tx); err != nil {
		return err
	}
	if slices.EqualFunc(core.Boxes, card.Core.Boxes, func(a, b identity.Box) bool { return a.ID == b.ID && string(a.Addr) == string(b.Addr) }) {
		return nil
	}
	row.CardSeq++
	core.Seq = row.CardSeq
	if row.Card, err = identity.SignCard(row.DeviceList, m.current().device, core, card.Prekey); err != nil {
		return err
	}
	m.adoptCard(tx, row)
	return tx.PutSelf(row)
}

// cardBoxes are the boxes at which everybody may leave mail who was given tokens.
func (m *Messenger) cardBoxes(tx *store.Tx) ([]identity.Box, error) {
	rows, err := tx.Boxes()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(rows, func(a, b store.Box) int { return a.Created.Compare(b.Created) })
	var out []identity.Box
	for _, row := range rows {
		if row.State == BoxOpen && row.Ready && len(row.Raw) > 0 && len(out) < identity.MaxBoxes {
			out = append(out, identity.Box{Addr: row.Raw, ID: row.ID})
		}
	}
	return out, nil
}

// adoptCard makes a signed card ours once it is on disk.
func (m *Messenger) adoptCard(tx *store.Tx, row store.Self) {
	card, n := row.Card, row.CardSeq
	tx.AfterCommit(func() {
		m.mu.Lock()
		m.self.card, m.self.cardN = card, n
		m.mu.Unlock()
		poke(m.moved) // invites carry the card
	})
}

// TestMailbox asks a mailbox how a box of ours stands, and how long its answer takes.
func (m *Messenger) TestMailbox(ctx context.Context, which string) (Mailbox, time.Duration, error) {
	m.mu.Lock()
	boxes := m.mail
	m.mu.Unlock()
	if boxes == nil {
		return Mailbox{}, 0, refuse(CodeOffline, "Start the node with its network: sotto up", "this node is offline")
	}
	rows, err := m.ownBoxes()
	if err != nil {
		return Mailbox{}, 0, err
	}
	row, err := findBox(rows, which)
	if err != nil {
		return Mailbox{}, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := boxes.Open(ctx, row.Raw, boxKey(row))
	var standing wire.Standing
	var took time.Duration
	if err == nil {
		defer func() { _ = s.Close() }()
		begun := m.clock.Now()
		standing, err = s.Standing(ctx)
		took = m.clock.Now().Sub(begun)
	}
	if err != nil {
		return m.viewBox(row), 0, &Error{Code: CodeMailboxSilent, Message: "the mailbox does not serve us: " + reason(err), Err: err,
			Remedy: "Others take its place meanwhile; if it stays so, drop it: sotto mailboxes drop " + boxShort(row.ID, 8)}
	}
	if err := m.noteStanding(row.ID, standing); err != nil {
		return Mailbox{}, 0, err
	}
	row, err = m.box(row.ID)
	return m.viewBox(row), took, err
}
