package session

import (
	"crypto/rand"
	"testing"
)

var payload200 = make([]byte, 200)

func BenchmarkEncrypt200InChain(b *testing.B) {
	alice, _ := pair(b)
	alice.say(b, "step")
	b.ReportAllocs()
	for b.Loop() {
		if alice.send.n == MaxChain {
			alice.send.n = 0
		}
		if _, err := alice.Encrypt(payload200, rand.Reader); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecrypt200InChain(b *testing.B) {
	alice, bob := pair(b)
	var message []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		if i%1000 == 0 {
			alice, bob = pair(b)
		}
		sealed, err := alice.Encrypt(payload200, rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		message = sealed.Item[1:]
		b.StartTimer()
		if _, err := bob.Decrypt(Item{Kind: KindMessage, Message: message}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSymmetricBothWays is one message within a chain, sealed and opened.
func BenchmarkSymmetricBothWays(b *testing.B) {
	alice, bob := pair(b)
	bob.mustHear(b, alice.say(b, "step").Item, "step")
	b.ReportAllocs()
	for b.Loop() {
		sealed, err := alice.Encrypt(payload200, rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := bob.Decrypt(Item{Kind: KindMessage, Message: sealed.Item[1:]}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTurn is a message and its answer, each with a step at both ends.
func BenchmarkTurn(b *testing.B) {
	alice, bob := pair(b)
	b.ReportAllocs()
	for b.Loop() {
		bob.mustHear(b, alice.say(b, "ping").Item, "ping")
		alice.mustHear(b, bob.say(b, "pong").Item, "pong")
	}
}

func BenchmarkRefuseForeignMessage(b *testing.B) {
	_, bob := pair(b)
	foreign := make([]byte, MessageOverhead+200)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := bob.Decrypt(Item{Kind: KindMessage, Message: foreign}, nil); err == nil {
			b.Fatal("opened")
		}
	}
}

func BenchmarkMarshal(b *testing.B) {
	alice, _ := pair(b)
	alice.say(b, "step")
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(alice.Marshal())))
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	alice, _ := pair(b)
	alice.say(b, "step")
	stored := alice.Marshal()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Unmarshal(stored); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInitiate(b *testing.B) {
	alice, bob := newPerson(b, "alice"), newPerson(b, "bob")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Initiate(alice.local, bob.card, bob.publicOneTime(), rand.Reader); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseAndAccept(b *testing.B) {
	alice, bob := newPerson(b, "alice"), newPerson(b, "bob")
	item := firstItem(b, alice, bob, true)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := acceptBytes(bob, item); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAck(b *testing.B) {
	item := make([]byte, ItemOverhead+200)
	b.ReportAllocs()
	for b.Loop() {
		Ack(Key{}, item)
	}
}

func BenchmarkSealEnvelope(b *testing.B) {
	bob := newPerson(b, "bob")
	items := [][]byte{make([]byte, ItemOverhead+200)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := SealEnvelope(bob.seal.Public(), items); err != nil {
			b.Fatal(err)
		}
	}
}
