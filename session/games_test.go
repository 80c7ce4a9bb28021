package session

import (
	"bytes"
	"fmt"
	"testing"
)

// Games: a thief copies a state at a moment of choice and then plays with what crosses the network.

// steal is everything the thief gets: the stored state and the stored skipped keys.
func steal(t testing.TB, e *end) *end {
	t.Helper()
	thief := e.clone()
	thief.Session = must(Unmarshal(e.Marshal()))(t)
	return thief
}

func TestAThiefOfTheStateReadsNothingThatWasRead(t *testing.T) {
	alice, bob := pair(t)
	var toAlice, toBob [][]byte
	for i := range 6 {
		for range 3 {
			toBob = append(toBob, alice.say(t, "a").Item)
			bob.mustHear(t, toBob[len(toBob)-1], "a")
		}
		for range 2 {
			toAlice = append(toAlice, bob.say(t, "b").Item)
			alice.mustHear(t, toAlice[len(toAlice)-1], "b")
		}
		// Both ends robbed after every round, at rest and in the middle of a turn.
		for _, item := range toBob {
			if _, err := steal(t, bob).hear(item); err == nil {
				t.Fatalf("round %d: an earlier message opens with bob's state", i)
			}
		}
		for _, item := range toAlice {
			if _, err := steal(t, alice).hear(item); err == nil {
				t.Fatalf("round %d: an earlier message opens with alice's state", i)
			}
		}
	}
}

func TestUsedKeysLeaveNoTraceInTheState(t *testing.T) {
	alice, bob := pair(t)
	spent := map[string][]byte{}
	note := func(name string, key []byte) { spent[name] = bytes.Clone(key) }
	for i := range 4 {
		if alice.due == nil {
			note(fmt.Sprint("sending chain key ", i), alice.send.ck[:])
		}
		sent := alice.say(t, "x")
		note(fmt.Sprint("private X25519 key ", i), alice.send.dh[:])
		note(fmt.Sprint("private ML-KEM seed ", i), alice.send.kem[:])
		note(fmt.Sprint("acknowledgement key ", i), sent.AckKey[:])
		before := bob.clone()
		bob.mustHear(t, sent.Item, "x")
		note(fmt.Sprint("root key ", i), before.rk[:])
		if before.recv.chain == bob.recv.chain {
			note(fmt.Sprint("receiving chain key ", i), before.recv.ck[:])
		}
		alice.mustHear(t, bob.say(t, "y").Item, "y")
	}
	for name, key := range spent {
		for who, state := range map[string][]byte{"alice": alice.Marshal(), "bob": bob.Marshal()} {
			if bytes.Contains(state, key) {
				t.Errorf("%s is still in %s's state", name, who)
			}
		}
	}
}

func TestASkippedMessageIsLostToTheThiefOnceItsKeyIsDropped(t *testing.T) {
	alice, bob := pair(t)
	late := alice.say(t, "late").Item
	bob.mustHear(t, alice.say(t, "next").Item, "next")
	if _, err := steal(t, bob).hear(late); err != nil {
		t.Fatalf("the stored key does not open: %v", err)
	}
	bob.keys = keyStore{}
	bob.ForgetSkipped(1, 1)
	if _, err := steal(t, bob).hear(late); err == nil {
		t.Error("the message opens without its key")
	}
}

func TestOneRoundTripHeals(t *testing.T) {
	for name, prepare := range map[string]func(alice, bob *end){
		"bob has answered": func(alice, bob *end) {},
		"bob owes an answer": func(alice, bob *end) {
			bob.mustHear(t, alice.say(t, "question").Item, "question")
		},
	} {
		t.Run(name, func(t *testing.T) {
			alice, bob := pair(t)
			prepare(alice, bob)
			thief := steal(t, bob)
			live := alice.say(t, "still read")
			bob.mustHear(t, live.Item, "still read")
			if _, err := thief.hear(live.Item); err != nil {
				t.Fatalf("control: the thief should read the live chain: %v", err)
			}
			// Bob's next chain has keys that the thief has never seen; alice answers to them.
			fromBob := bob.say(t, "fresh keys")
			alice.mustHear(t, fromBob.Item, "fresh keys")
			healed := alice.say(t, "healed")
			bob.mustHear(t, healed.Item, "healed")
			if _, err := thief.hear(healed.Item); err == nil {
				t.Error("the thief reads on after a round trip")
			}
			// Not even by making the step in bob's stead, with keys of its own.
			thief.say(t, "guess")
			if _, err := thief.hear(healed.Item); err == nil {
				t.Error("the thief reads on after a step of its own")
			}
		})
	}
}

func TestBothSecretsOfAStepAreNeeded(t *testing.T) {
	var th [32]byte
	base := func() (rk Key, dh, ss []byte) {
		return Key{9}, bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	}
	rk, dh, ss := base()
	root, ck, nhk := rootStep(&rk, dh, ss, &th)
	for name, change := range map[string]func(rk *Key, dh, ss []byte, th *[32]byte){
		"root key":      func(rk *Key, _, _ []byte, _ *[32]byte) { rk[0]++ },
		"X25519 secret": func(_ *Key, dh, _ []byte, _ *[32]byte) { dh[0]++ },
		"ML-KEM secret": func(_ *Key, _, ss []byte, _ *[32]byte) { ss[0]++ },
		"keys and text": func(_ *Key, _, _ []byte, th *[32]byte) { th[0]++ },
	} {
		rk, dh, ss := base()
		var th [32]byte
		change(&rk, dh, ss, &th)
		if r, c, n := rootStep(&rk, dh, ss, &th); r == root || c == ck || n == nhk {
			t.Errorf("the %s does not matter", name)
		}
	}
}

func TestARestoredStateNeverSpendsAPositionTwice(t *testing.T) {
	alice, bob := pair(t)
	alice.say(t, "step")
	stored := alice.Marshal()
	var sent []Sealed
	for range 5 {
		sent = append(sent, alice.say(t, "left before the power cut"))
	}
	// The disk comes back with the older state; the floor log outside had reserved up to 64.
	alice.Session = must(Unmarshal(stored))(t)
	if err := alice.SkipTo(64); err != nil {
		t.Fatal(err)
	}
	again := alice.say(t, "after")
	for _, s := range append(sent, again) {
		if _, err := bob.hear(s.Item); err != nil {
			t.Errorf("position %d: %v", s.N, err)
		}
	}
}
