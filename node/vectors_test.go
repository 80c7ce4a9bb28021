package node

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"sotto/internal/canon"
)

var update = flag.Bool("update", false, "write testdata anew")

// vectors pin what a volunteer signs (PROTOCOL 13.6). Frames of the other protocols are pinned in package wire.
type vectors struct {
	ServiceSeed  string   `json:"service_seed"`
	DHTSeed      string   `json:"dht_seed"`
	Issued       int64    `json:"issued"`
	TimeMS       int64    `json:"time_ms"`
	ServiceAddrs []string `json:"service_addrs"`
	DHTAddrs     []string `json:"dht_addrs"`
	Terms        string   `json:"terms"`
	List         string   `json:"list"`
	PeerID       string   `json:"service_peer_id"`
	Ping         string   `json:"ping"`
}

func TestAVolunteersListHasTheseBytes(t *testing.T) {
	const file = "testdata/volunteers.json"
	service, server := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)), ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	v := vectors{
		ServiceSeed: hex.EncodeToString(service.Seed()), DHTSeed: hex.EncodeToString(server.Seed()),
		Issued: 1_790_000_000, TimeMS: 1_790_000_123_456,
		ServiceAddrs: []string{"/ip4/198.51.100.7/udp/4001/quic-v1", "/ip4/198.51.100.7/tcp/4001"},
		DHTAddrs:     []string{"/ip4/198.51.100.7/udp/4002/quic-v1"},
		Ping:         "00000010" + hex.EncodeToString(bytes.Repeat([]byte{7}, pingSize)),
	}
	raw := func(list []string) (out [][]byte) {
		for _, s := range list {
			out = append(out, ma.StringCast(s).Bytes())
		}
		return out
	}
	terms := Terms{
		Service: innerKey(service), DHT: innerKey(server), Issued: time.Unix(v.Issued, 0),
		ServiceAddrs: raw(v.ServiceAddrs), DHTAddrs: raw(v.DHTAddrs), Exts: []canon.Extension{{ID: 7, Data: []byte("later")}},
	}.marshal(service)
	signed := list{Time: time.UnixMilli(v.TimeMS), Entries: [][]byte{terms}}.marshal(service)
	id, err := peerOf(innerKey(service))
	if err != nil {
		t.Fatal(err)
	}
	v.Terms, v.List, v.PeerID = hex.EncodeToString(terms), hex.EncodeToString(signed), id.String()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), want) {
		t.Fatalf("bytes on the wire changed:\n%s", got)
	}
	at, all, err := parseList(signed, innerKey(server))
	if err != nil || len(all) != 1 || at.UnixMilli() != v.TimeMS || len(all[0].Exts) != 1 {
		t.Fatalf("read back: %v, %+v, %v", at, all, err)
	}
}
