package messenger_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/wire"
)

// TestFivePeopleInChaosLoseNothing lets five people, all contacts of each other, write at random while they are restarted,
// cut off from each other and served by a bad network. After all has healed each shows what each other wrote, once and in
// order. -more 100 runs a hundred times as many seeds.
func TestFivePeopleInChaosLoseNothing(t *testing.T) {
	for seed := range seeds(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newChaos(t, seed).run() })
		})
	}
}

// chaos is one run: who takes part, what everybody wrote to everybody.
type chaos struct {
	t      *testing.T
	rand   *rand.Rand
	net    *testnet.Net
	people []*person
	wrote  map[[2]string][]string
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{t: t, rand: rand.New(rand.NewPCG(seed, 5)), net: testnet.NewNet(seed, testnet.Faults{}), wrote: map[[2]string][]string{}}
	var links []string
	for i := range 5 {
		var where []option
		if i%2 == 0 { // the others keep their store over a restart of the messenger alone
			where = append(where, onQuickDisk)
		}
		p := newPerson(t, c.net, fmt.Sprint("p", i), where...)
		for _, link := range links {
			p.add(link)
		}
		c.people = append(c.people, p)
		links = append(links, p.invite(messenger.InviteRequest{Reusable: true}).Link)
	}
	settle(10 * time.Second)
	for _, p := range c.people { // or each restart would publish it anew
		list, err := p.m.Invites(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := p.m.RevokeInvite(t.Context(), list[0].ID); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *chaos) run() {
	for range 30 {
		c.net.SetFaults(testnet.Faults{
			Loss: c.rand.Float64() * 0.4, AckLoss: c.rand.Float64() * 0.4, Duplicate: c.rand.Float64() * 0.3,
			Shuffle: c.rand.Float64() * 0.5, Delay: time.Duration(1 + c.rand.IntN(int(time.Second))),
		})
		for range c.rand.IntN(6) {
			c.act()
		}
		settle(time.Duration(c.rand.IntN(int(3 * time.Second))))
	}
	c.heal()
	for _, a := range c.people {
		for _, b := range c.people {
			if a != b {
				wantTexts(c.t, b, a.name, c.wrote[[2]string{a.name, b.name}])
				a.explain(b)
			}
		}
	}
	check(c.t, c.people...)
}

// act does one thing at random: mostly somebody writes.
func (c *chaos) act() {
	i := c.rand.IntN(len(c.people))
	a, b := c.people[i], c.people[(i+1+c.rand.IntN(len(c.people)-1))%len(c.people)]
	switch n := c.rand.IntN(20); {
	case n == 0 && a.dir != "":
		a.restart()
	case n <= 1:
		a.restart2()
	case n == 2:
		c.net.Cut(a.port, b.port, true)
	case n <= 4:
		c.net.Cut(a.port, b.port, false)
	default:
		way := [2]string{a.name, b.name}
		text := fmt.Sprintf("%s to %s, %d", a.name, b.name, len(c.wrote[way]))
		a.send(b.name, text)
		c.wrote[way] = append(c.wrote[way], text)
	}
}

// explain tells what became of messages that were not delivered.
func (p *person) explain(to *person) {
	p.t.Helper()
	for _, row := range p.rows(to) {
		if row.Out && row.State != messenger.StateDelivered {
			trace, err := p.m.Trace(p.t.Context(), wire.MsgID(row.ID).String())
			p.t.Errorf("%s: %q is %s: %+v, %v", p.name, wire.TextOf(row.Raw), row.State, trace.Steps, err)
		}
	}
}

func (c *chaos) heal() {
	c.net.SetFaults(testnet.Faults{})
	for _, a := range c.people {
		for _, b := range c.people {
			c.net.Cut(a.port, b.port, false)
		}
	}
	for range 12 { // liveness: twelve minutes are more than the longest pause between two tries
		settle(time.Minute)
		if !slices.ContainsFunc(c.people, func(p *person) bool { return p.status().Queued > 0 }) {
			return
		}
	}
}
