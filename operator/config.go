package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sotto/mailbox"
)

// Config is config.toml in the home directory; every line may be left out, and flags win over it.
type Config struct {
	Port         int      `toml:"port" json:"port"`                   // of the service host, UDP and TCP; 0 is any
	DHTPort      int      `toml:"dht_port" json:"dht_port"`           // of the DHT host
	Listen       []string `toml:"listen" json:"listen"`               // IP addresses; empty is all
	Announce     []string `toml:"announce" json:"announce"`           // IP addresses or names under which the world reaches this machine
	Peers        []string `toml:"peers" json:"peers"`                 // bootstrap addresses of other volunteers
	MaxUsers     int      `toml:"max_users" json:"max_users"`         // people served at a time
	MaxRecords   int      `toml:"max_records" json:"max_records"`     // DHT records kept, of at most 8 KiB
	AllowPrivate bool     `toml:"allow_private" json:"allow_private"` // serve a closed network with private addresses
	MDNS         bool     `toml:"mdns" json:"mdns"`                   // announce on the local network
	Network      string   `toml:"network" json:"network"`             // name of a separate test network
	Services     Services `toml:"services" json:"services"`
	Metrics      Metrics  `toml:"metrics" json:"metrics"`
	Mailbox      Mailbox  `toml:"mailbox" json:"mailbox"`
}

// Services are what the volunteer does besides keeping mail; each can be switched off.
type Services struct {
	Relay   bool `toml:"relay" json:"relay"`     // pass on what people behind routers say to each other
	DHT     bool `toml:"dht" json:"dht"`         // keep records and answer look-ups: what makes it a bootstrap
	AutoNAT bool `toml:"autonat" json:"autonat"` // tell people whether they can be reached
}

// Metrics is where a monitoring program on this machine reads figures.
type Metrics struct {
	Listen string `toml:"listen" json:"listen"` // loopback address and port; empty: nowhere
}

// Mailbox is what the volunteer keeps for people who are away.
type Mailbox struct {
	Enabled      bool   `toml:"enabled" json:"enabled"`
	Mode         string `toml:"mode" json:"mode"`                   // who gets a box: "open", "invite", "allowlist", "closed"
	Quota        int    `toml:"quota" json:"quota"`                 // MiB of disk in all
	Reserve      int    `toml:"reserve" json:"reserve"`             // MiB of the disk that stay free; 0 for none
	Boxes        int    `toml:"boxes" json:"boxes"`                 // at most
	BoxSize      int    `toml:"box_size" json:"box_size"`           // MiB of one box
	BoxCount     int    `toml:"box_count" json:"box_count"`         // envelopes in one box
	KeepDays     int    `toml:"keep_days" json:"keep_days"`         // how long mail is kept that nobody fetches
	RegisterBits int    `toml:"register_bits" json:"register_bits"` // of work for a box in mode open; each bit doubles it
	StrangerBits int    `toml:"stranger_bits" json:"stranger_bits"` // of work for an envelope from a stranger
	Note         string `toml:"note" json:"note"`                   // shown to people who consider this mailbox
}

// Ports that people will find in firewalls' documentation.
const (
	defaultPort    = 4001
	defaultDHTPort = 4002
)

const configName = "config.toml"

func defaultConfig() Config {
	return Config{
		Port: defaultPort, DHTPort: defaultDHTPort, MaxUsers: 1000, MaxRecords: 100_000,
		Services: Services{Relay: true, DHT: true, AutoNAT: true},
		Mailbox:  Mailbox{Enabled: true, Mode: "open", Quota: 10 << 10, Reserve: 512, Boxes: 20_000, BoxSize: 64, BoxCount: 4096, KeepDays: 30, RegisterBits: 20, StrangerBits: 22},
	}
}

// maxConfig bounds the file; a longer one is not ours.
const maxConfig = 1 << 20

// loadConfig reads config.toml if there is one. A key nobody knows is an error: it would be a wish silently ignored.
func loadConfig(home string) (Config, error) {
	c := defaultConfig()
	path := filepath.Join(home, configName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	bad := func(err error) (Config, error) {
		return c, failed(exitUsage, "config", "Mend it, then: sotto-mailbox config check", fmt.Errorf("%s: %w", path, err))
	}
	if err != nil {
		return bad(err)
	}
	if info.Size() > maxConfig {
		return bad(fmt.Errorf("%d bytes is too long for a configuration", info.Size()))
	}
	meta, err := toml.DecodeFile(path, &c)
	if err != nil {
		return bad(err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return bad(fmt.Errorf("unknown key %q", unknown[0].String()))
	}
	if err := c.check(); err != nil {
		return bad(err)
	}
	return c, nil
}

// check names the first value that cannot be meant.
func (c Config) check() error {
	for _, p := range []struct {
		name  string
		value int
	}{{"port", c.Port}, {"dht_port", c.DHTPort}} {
		if p.value < 0 || p.value > 65535 {
			return fmt.Errorf("%s = %d: want 0 to 65535", p.name, p.value)
		}
	}
	if c.Port != 0 && c.Port == c.DHTPort {
		return fmt.Errorf("port and dht_port are both %d: want two ports", c.Port)
	}
	for _, l := range []struct {
		name       string
		value, max int
	}{{"max_users", c.MaxUsers, 1_000_000}, {"max_records", c.MaxRecords, 10_000_000}} {
		if l.value < 1 || l.value > l.max {
			return fmt.Errorf("%s = %d: want 1 to %d", l.name, l.value, l.max)
		}
	}
	if err := c.Mailbox.check(); err != nil {
		return err
	}
	if err := c.Metrics.check(); err != nil {
		return err
	}
	for _, a := range c.Listen {
		if _, err := netip.ParseAddr(a); err != nil {
			return fmt.Errorf("listen %q: want an IP address", a)
		}
	}
	for _, a := range c.Announce {
		if _, err := hostPart(a); err != nil {
			return err
		}
		if c.Port == 0 || c.DHTPort == 0 {
			return errors.New("announce needs fixed ports: set port and dht_port")
		}
	}
	for _, p := range c.Peers {
		if _, err := peer.AddrInfoFromString(p); err != nil {
			return fmt.Errorf("peers %q: want a multiaddr that ends in /p2p/ and a peer id", p)
		}
	}
	if strings.ContainsAny(c.Network, "/ _") || len(c.Network) > 32 {
		return fmt.Errorf("network %q: want a short word", c.Network)
	}
	return nil
}

// check refuses an address that others could reach: figures are for this machine.
func (m Metrics) check() error {
	if m.Listen == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(m.Listen)
	if err != nil {
		return fmt.Errorf("metrics.listen = %q: want an address of this machine and a port, as in \"127.0.0.1:9464\"", m.Listen)
	}
	if !at.Addr().IsLoopback() {
		return fmt.Errorf("metrics.listen = %q: only loopback addresses (127.0.0.1, [::1]) are taken: who watches from elsewhere reads it through a proxy or a tunnel", m.Listen)
	}
	return nil
}

// check names the first value of the mailbox that cannot be meant.
func (m Mailbox) check() error {
	for _, l := range []struct {
		name            string
		value, min, max int
	}{
		{"quota", m.Quota, 64, 1 << 24}, {"reserve", m.Reserve, 0, 1 << 24}, {"boxes", m.Boxes, 1, 1_000_000}, {"box_size", m.BoxSize, 1, 1 << 20},
		{"box_count", m.BoxCount, 32, 1_000_000}, {"keep_days", m.KeepDays, 1, 30}, {"register_bits", m.RegisterBits, 0, 32}, {"stranger_bits", m.StrangerBits, 22, 32},
	} {
		if l.value < l.min || l.value > l.max {
			return fmt.Errorf("mailbox.%s = %d: want %d to %d", l.name, l.value, l.min, l.max)
		}
	}
	if _, err := mailbox.ParseMode(m.Mode); err != nil {
		return fmt.Errorf("mailbox.mode: %w", err)
	}
	if len(m.Note) > 256 || !utf8.ValidString(m.Note) {
		return errors.New("mailbox.note: want at most 256 bytes of text")
	}
	return nil
}

// doubts are announced addresses that hardly anybody can use.
func (c Config) doubts() []string {
	var out []string
	for _, name := range c.Announce {
		if host, err := hostPart(name); err == nil && !c.AllowPrivate && strings.HasPrefix(host, "/ip") && !public(host) {
			out = append(out, "announce "+name+": this is not a public address, and people elsewhere cannot reach it; for a closed network set allow_private = true")
		}
	}
	return out
}

// hostPart makes an IP address or a name the beginning of a multiaddr.
func hostPart(s string) (string, error) {
	bad := fmt.Errorf("announce %q: want an IP address or a host name, without a port", s)
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip = ip.Unmap(); ip.IsUnspecified() || ip.Zone() != "" {
			return "", bad
		}
		if ip.Is4() {
			return "/ip4/" + ip.String(), nil
		}
		return "/ip6/" + ip.String(), nil
	}
	if strings.ContainsAny(s, "/: ") || !strings.Contains(s, ".") {
		return "", bad
	}
	if _, err := ma.NewMultiaddr("/dns/" + s); err != nil {
		return "", bad
	}
	return "/dns/" + s, nil
}

// announced are the multiaddrs of one host under every announced name.
func (c Config) announced(port int) []string {
	var out []string
	for _, a := range c.Announce {
		if host, err := hostPart(a); err == nil {
			out = append(out, transports(host, port)...)
		}
	}
	return out
}

// listen are the multiaddrs both hosts listen on, the port left open.
func (c Config) listen() []string {
	var out []string
	for _, a := range c.Listen {
		if ip, err := netip.ParseAddr(a); err == nil {
			host := "/ip6/"
			if ip.Is4() {
				host = "/ip4/"
			}
			out = append(out, transports(host+ip.WithZone("").String(), 0)...)
		}
	}
	return out
}

func transports(host string, port int) []string {
	p := strconv.Itoa(port)
	return []string{host + "/udp/" + p + "/quic-v1", host + "/tcp/" + p}
}

// flags lets the command line say what config.toml can.
func (c *Config) flags(f *pflag.FlagSet) {
	f.IntVar(&c.Port, "port", c.Port, "UDP and TCP port of the relay; 0 is any")
	f.IntVar(&c.DHTPort, "dht-port", c.DHTPort, "UDP and TCP port of the DHT server; 0 is any")
	f.StringSliceVar(&c.Listen, "listen", c.Listen, "IP address to listen on (repeatable; default all)")
	f.StringSliceVar(&c.Announce, "announce", c.Announce, "IP address or name to announce (repeatable; default what the machine finds out)")
	f.StringSliceVar(&c.Peers, "peer", c.Peers, "bootstrap address of another volunteer (repeatable)")
	f.IntVar(&c.MaxUsers, "max-users", c.MaxUsers, "people to serve at a time")
	f.BoolVar(&c.AllowPrivate, "allow-private", c.AllowPrivate, "serve private and loopback addresses: tests, closed networks")
	f.BoolVar(&c.MDNS, "mdns", c.MDNS, "announce on the local network")
	f.BoolVar(&c.Mailbox.Enabled, "mailbox", c.Mailbox.Enabled, "keep mail for people who are away")
	f.StringVar(&c.Mailbox.Mode, "mailbox-mode", c.Mailbox.Mode, "who gets a mailbox: open, invite, allowlist, closed")
	f.IntVar(&c.Mailbox.Quota, "mailbox-quota", c.Mailbox.Quota, "MiB of disk for mail")
	f.StringVar(&c.Metrics.Listen, "metrics", c.Metrics.Listen, "loopback address and port for /metrics and /healthz, as in 127.0.0.1:9464")
	f.StringVar(&c.Network, "network", c.Network, "name of a separate test network")
}

// merge lays the flags that were given over what the file says.
func merge(file, given Config, f *pflag.FlagSet) Config {
	set := map[string]func(){
		"port": func() { file.Port = given.Port }, "dht-port": func() { file.DHTPort = given.DHTPort },
		"listen": func() { file.Listen = given.Listen }, "announce": func() { file.Announce = given.Announce },
		"peer": func() { file.Peers = given.Peers }, "max-users": func() { file.MaxUsers = given.MaxUsers },
		"allow-private": func() { file.AllowPrivate = given.AllowPrivate }, "mdns": func() { file.MDNS = given.MDNS },
		"network": func() { file.Network = given.Network }, "mailbox": func() { file.Mailbox.Enabled = given.Mailbox.Enabled },
		"mailbox-mode": func() { file.Mailbox.Mode = given.Mailbox.Mode }, "mailbox-quota": func() { file.Mailbox.Quota = given.Mailbox.Quota },
		"metrics": func() { file.Metrics.Listen = given.Metrics.Listen },
	}
	f.Visit(func(flag *pflag.Flag) {
		if take := set[flag.Name]; take != nil {
			take()
		}
	})
	return file
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Check config.toml, keys and ports without serving", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := loadConfig(a.home)
		if err != nil {
			return err
		}
		if _, err := readKeys(a.home); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed(exitFailed, "keys", "Keys are files of mode 0600 in "+a.home, err)
		}
		running := a.running(cmd.Context())
		if !running {
			if err := c.portsFree(); err != nil {
				return failed(exitFailed, "port", "Choose others with port and dht_port in "+filepath.Join(a.home, configName), err)
			}
		}
		for _, doubt := range c.doubts() {
			_, _ = fmt.Fprintf(a.env.Stderr, "sotto-mailbox: %s.\n", doubt)
		}
		return a.print(map[string]any{"ok": true, "home": a.home, "running": running, "config": c},
			"ok: %s, relay on port %d, DHT on port %d, up to %d people\n", a.home, c.Port, c.DHTPort, c.MaxUsers)
	}}
}

// portsFree names the first port that somebody has. The hosts alone would not tell: TCP ports can be shared with whoever
// shares theirs, and a host that got one transport of two is content.
func (c Config) portsFree() error {
	for _, port := range []int{c.Port, c.DHTPort} {
		if port == 0 {
			continue // any: nothing to be in the way of
		}
		for _, ip := range c.listenIPs() {
			if err := portFree(ip, port); err != nil {
				return err
			}
		}
	}
	return nil
}

// listenIPs are the addresses to listen on, "" for all.
func (c Config) listenIPs() []string {
	if len(c.Listen) == 0 {
		return []string{""}
	}
	return c.Listen
}

// portFree tries both transports.
func portFree(ip string, port int) error {
	at := net.JoinHostPort(ip, strconv.Itoa(port))
	t, err := net.Listen("tcp", at)
	if err != nil {
		return fmt.Errorf("TCP port %d cannot be had: %w", port, err)
	}
	_ = t.Close()
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		return fmt.Errorf("UDP port %d cannot be had: %w", port, err)
	}
	return u.Close()
}
