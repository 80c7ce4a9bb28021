package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"sotto/control"
	"sotto/identity"
)

// Config is config.toml: the person's own file, which the program reads and never writes.
type Config struct {
	Network NetworkConfig `toml:"network"`
	Store   StoreConfig   `toml:"store"`
	Log     LogConfig     `toml:"log"`
}

// NetworkConfig is what the node's two hosts are told.
type NetworkConfig struct {
	Bootstrap    []string `toml:"bootstrap"`     // volunteers' DHT hosts, with /p2p
	Relays       []string `toml:"relays"`        // volunteers' service hosts, with /p2p
	Listen       []string `toml:"listen"`        // instead of every interface
	InnerPort    int      `toml:"inner_port"`    // 0: chosen once and kept
	FrontPort    int      `toml:"front_port"`    // the same
	MDNS         bool     `toml:"mdns"`          // find people on the local network
	PortMap      bool     `toml:"port_map"`      // ask the router for a port
	RelayOnly    bool     `toml:"relay_only"`    // never show an own address
	AllowPrivate bool     `toml:"allow_private"` // closed networks and tests
	Name         string   `toml:"name"`          // a separate network
	Mailboxes    int      `toml:"mailboxes"`     // how many the program chooses for itself, those the person added included; 0: none
}

// StoreConfig is what the database may take, and leave.
type StoreConfig struct {
	Reserve Size `toml:"reserve"`
	Ballast Size `toml:"ballast"`
}

// LogConfig is how much is written into the log.
type LogConfig struct {
	Level Level `toml:"level"`
}

// Level is how important a line must be to be written.
type Level slog.Level

// UnmarshalText reads a level.
func (l *Level) UnmarshalText(text []byte) error {
	if (*slog.Level)(l).UnmarshalText(text) != nil {
		return fmt.Errorf("%q is not a level: write debug, info, warn or error", text)
	}
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (l Level) MarshalText() ([]byte, error) { return slog.Level(l).MarshalText() }

// Size is a number of bytes, written like "128 MiB".
type Size int64

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	cut := strings.LastIndexAny(in, "0123456789") + 1
	n, err := strconv.ParseInt(in[:cut], 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a size: write it like \"128 MiB\"", in)
	}
	shift, ok := map[string]int{"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30}[strings.TrimSpace(in[cut:])]
	if !ok || n < 0 || n > math.MaxInt64>>shift {
		return fmt.Errorf("%q is not a size: write it like \"128 MiB\"", in)
	}
	*s = Size(n << shift)
	return nil
}

// String writes a size as UnmarshalText reads it.
func (s Size) String() string {
	for _, u := range []struct {
		shift int
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if s != 0 && s%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d %s", int64(s)>>u.shift, u.name)
		}
	}
	return fmt.Sprintf("%d B", int64(s))
}

// MarshalText is the inverse of UnmarshalText.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const (
	leastReserve = 16 << 20
	mostReserve  = 64 << 30
)

// DefaultConfig is what holds where config.toml says nothing.
func DefaultConfig() Config {
	return Config{
		Network: NetworkConfig{MDNS: true, PortMap: true, Mailboxes: identity.MaxBoxes},
		Store:   StoreConfig{Reserve: 128 << 20, Ballast: 128 << 20},
	}
}

// LoadConfig reads config.toml; a missing file is the default.
func LoadConfig(path string) (Config, error) {
	cfg := DefaultConfig()
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, nil
	}
	if err != nil {
		return cfg, fmt.Errorf("read config: %w", err)
	}
	if !info.Mode().IsRegular() {
		return cfg, configError(path, "Put a file in its place, or take it away.", "it is not a plain file")
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		return cfg, configError(path, "Run chmod go-w on it.", "others may change it (mode %04o)", info.Mode().Perm())
	}
	if info.Size() > 1<<20 {
		return cfg, configError(path, "Is it the right file?", "it has %d bytes", info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return cfg, fmt.Errorf("read config: %w", err)
	}
	return ParseConfig(path, string(text))
}

// ParseConfig reads a config's text; path is for errors.
func ParseConfig(path, text string) (Config, error) {
	cfg := DefaultConfig()
	meta, err := toml.Decode(text, &cfg)
	if err != nil {
		var bad toml.ParseError
		if errors.As(err, &bad) {
			return cfg, configError(path, "Correct the line; all keys are shown by: sotto config show --defaults", "line %d: %s", bad.Position.Line, strings.TrimSuffix(bad.Message, " for int64"))
		}
		return cfg, configError(path, "Correct the value; all keys are shown by: sotto config show --defaults", "%s", complaint(err))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return cfg, unknownKey(path, unknown[0].String())
	}
	return cfg, cfg.check(path)
}

// mismatch is how the decoder tells of a value of the wrong type.
var mismatch = regexp.MustCompile(`line ([0-9]+) \(last key "([^"]+)"\)`)

// complaint is what is wrong with a value, in words of the file and not of the program.
func complaint(err error) string {
	at := mismatch.FindStringSubmatch(err.Error())
	if at == nil {
		return err.Error()
	}
	wants := wanted(at[2])
	if wants == "" {
		return fmt.Sprintf("line %s: the value of %s does not fit", at[1], at[2])
	}
	return fmt.Sprintf("line %s: %s wants %s", at[1], at[2], wants)
}

// wanted says what a key's value must be, "" when it says so itself.
func wanted(key string) string {
	section, name, _ := strings.Cut(key, ".")
	t := reflect.TypeFor[Config]()
	for _, part := range []string{section, name} {
		if part == "" {
			return "keys of its own, below a line [" + section + "]"
		}
		if t.Kind() != reflect.Struct {
			return ""
		}
		i := slices.IndexFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Tag.Get("toml") == part })
		if i < 0 {
			return ""
		}
		t = t.Field(i).Type
	}
	switch {
	case t == reflect.TypeFor[Size]():
		return `a size in quotes, such as "128 MiB"`
	case t == reflect.TypeFor[Level]():
		return `"debug", "info", "warn" or "error"`
	case t.Kind() == reflect.Bool:
		return "true or false, without quotes"
	case t.Kind() == reflect.Int:
		return "a whole number, without quotes"
	case t.Kind() == reflect.Slice:
		return `a list of texts, such as ["one", "two"]`
	case t.Kind() == reflect.String:
		return "a text in quotes"
	}
	return ""
}

func unknownKey(path, key string) error {
	hint := "All keys are shown by: sotto config show --defaults"
	if near := Nearest(key, Keys()); near != "" {
		hint = "Did you mean " + near + "?"
	}
	return configError(path, hint, "no key is called %q", key)
}

func configError(path, hint, format string, args ...any) error {
	return control.Errorf(control.ExitUsage, "bad_config", hint, "%s: %s", path, fmt.Sprintf(format, args...))
}

// Keys are all keys of config.toml.
func Keys() []string {
	var text strings.Builder
	if err := toml.NewEncoder(&text).Encode(DefaultConfig()); err != nil {
		return nil
	}
	var tree map[string]map[string]any
	if _, err := toml.Decode(text.String(), &tree); err != nil {
		return nil
	}
	var keys []string
	for section, rows := range tree {
		keys = append(keys, section)
		for name := range rows {
			keys = append(keys, section+"."+name)
		}
	}
	keys = append(keys, "network.bootstrap", "network.relays", "network.listen") // the encoder leaves empty lists out
	slices.Sort(keys)
	return slices.Compact(keys)
}

// check refuses values that would only fail later, or quietly do nothing.
func (c Config) check(path string) error {
	for name, port := range map[string]int{"inner_port": c.Network.InnerPort, "front_port": c.Network.FrontPort} {
		if port < 0 || port > 65535 {
			return configError(path, "Use 1 to 65535, or leave it out.", "network.%s: %d is not a port", name, port)
		}
	}
	if c.Network.InnerPort != 0 && c.Network.InnerPort == c.Network.FrontPort {
		return configError(path, "Give each its own, or leave them out.", "network.inner_port and front_port are the same")
	}
	if c.Network.Mailboxes < 0 || c.Network.Mailboxes > identity.MaxBoxes {
		return configError(path, fmt.Sprintf("Use 0 to %d.", identity.MaxBoxes), "network.mailboxes: %d is out of range", c.Network.Mailboxes)
	}
	for name, size := range map[string]Size{"reserve": c.Store.Reserve, "ballast": c.Store.Ballast} {
		if size < leastReserve || size > mostReserve {
			return configError(path, fmt.Sprintf("Use %s to %s.", Size(leastReserve), Size(mostReserve)), "store.%s: %s is out of range", name, size)
		}
	}
	for name, list := range map[string][]string{"bootstrap": c.Network.Bootstrap, "relays": c.Network.Relays} {
		for _, addr := range list {
			if err := CheckAddr(addr); err != nil {
				return configError(path, "Write it like /ip4/203.0.113.7/udp/4002/quic-v1/p2p/12D3Koo…, as the volunteer prints it.", "network.%s: %v", name, err)
			}
		}
	}
	for _, addr := range c.Network.Listen {
		if _, err := ma.NewMultiaddr(addr); err != nil {
			return configError(path, "Write it like /ip4/0.0.0.0/udp/0/quic-v1.", "network.listen: %q is not an address", addr)
		}
	}
	for _, r := range c.Network.Name {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9') || len(c.Network.Name) > 16 {
			return configError(path, "Use at most 16 lower-case letters and digits.", "network.name: %q", c.Network.Name)
		}
	}
	return nil
}

// Doubts are settings that may be meant, and will hardly do what was meant.
func (c Config) Doubts() []control.Warning {
	if c.Network.AllowPrivate {
		return nil
	}
	var out []control.Warning
	for _, list := range []struct {
		name  string
		addrs []string
	}{{"bootstrap", c.Network.Bootstrap}, {"relays", c.Network.Relays}} {
		for _, addr := range list.addrs {
			if a, err := ma.NewMultiaddr(addr); err == nil && !manet.IsPublicAddr(a) {
				out = append(out, control.Warning{Text: fmt.Sprintf("network.%s: %s is a private address, which does not work while network.allow_private is off", list.name, addr),
					Fix: "write allow_private = true under [network], if this is a closed network: sotto config path"})
			}
		}
	}
	return out
}

// CheckAddr refuses what is not the address of one certain peer.
func CheckAddr(addr string) error {
	a, err := ma.NewMultiaddr(addr)
	if err != nil {
		return fmt.Errorf("%q is not an address", addr)
	}
	if _, err := a.ValueForProtocol(ma.P_P2P); err != nil {
		return fmt.Errorf("%q does not end in /p2p/…", addr)
	}
	return nil
}

// Nearest is the word that a typo most likely stands for, or "" when none is near.
func Nearest(typed string, words []string) string {
	best, most := "", max(2, min(len(typed), 32)/4)
	for _, w := range words {
		if d := distance(typed, w); d <= most {
			best, most = w, d-1
		}
	}
	return best
}

// distance counts the letters to change, add or drop (Levenshtein).
func distance(a, b string) int {
	if max(len(a), len(b)) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost = min(corner, row[j], row[j+1]) + 1
			}
			corner, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// String is the config as a file that could be read back.
func (c Config) String() string {
	var text strings.Builder
	c.Network.Bootstrap, c.Network.Relays, c.Network.Listen = list(c.Network.Bootstrap), list(c.Network.Relays), list(c.Network.Listen)
	enc := toml.NewEncoder(&text)
	enc.Indent = ""
	if err := enc.Encode(c); err != nil {
		return "# " + err.Error() + "\n"
	}
	return text.String()
}

func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

// Tree is the config as nested maps, for JSON with the keys of the file.
func (c Config) Tree() map[string]any {
	tree := map[string]any{}
	_, _ = toml.Decode(c.String(), &tree)
	return tree
}
