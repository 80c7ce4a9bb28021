package operator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics answers /metrics and /healthz on a loopback address. It names no box and no address, and has nothing that status has not.
type metrics struct {
	listener net.Listener
	server   *http.Server
}

const metricsTimeout = 10 * time.Second

// listenMetrics opens the address, so that one that cannot be had is an error of the start.
func listenMetrics(m Metrics, now func() status) (*metrics, error) {
	if m.Listen == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", m.Listen)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(figures{now}); err != nil {
		return nil, errors.Join(fmt.Errorf("metrics: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: metricsTimeout}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := healthOf(now(), false)
		text := "ok\n"
		if !h.OK {
			w.WriteHeader(http.StatusServiceUnavailable)
			text = "not well\n"
		}
		for _, p := range h.Wrong {
			text += p.words()
		}
		_, _ = w.Write([]byte(text))
	})
	return &metrics{l, &http.Server{
		Handler: fromHere(mux), ReadTimeout: metricsTimeout, WriteTimeout: 2 * metricsTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}, nil
}

// fromHere refuses what a web page could ask for in a browser on this machine under a name that was made to point here.
func fromHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
			http.Error(w, "ask by a loopback address", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// run serves until ctx ends.
func (m *metrics) run(ctx context.Context) error {
	if m == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = m.server.Close() })
	defer stop()
	if err := m.server.Serve(m.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// figures is the status as Prometheus reads it.
type figures struct{ now func() status }

// Describe announces nothing: what there is depends on what is served.
func (figures) Describe(chan<- *prometheus.Desc) {}

// Collect turns the status of this moment into figures.
func (f figures) Collect(out chan<- prometheus.Metric) {
	s := f.now()
	number := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		if m, err := prometheus.NewConstMetric(prometheus.NewDesc("sotto_"+name, help, names, nil), kind, v, values...); err == nil {
			out <- m
		}
	}
	gauge := func(name, help string, v float64, labels ...string) {
		number(prometheus.GaugeValue, name, help, v, labels...)
	}
	counter := func(name, help string, v uint64, labels ...string) {
		number(prometheus.CounterValue, name, help, float64(v), labels...)
	}
	h := healthOf(s, false)
	gauge("healthy", "1 while it serves, 0 when a watchdog should act.", oneIf(h.OK))
	gauge("problems", "How many things are wrong, as status tells them.", float64(len(h.Wrong)))
	gauge("start_time_seconds", "When it was started, in Unix seconds.", float64(s.Since.Unix()))
	gauge("connections", "Connections, by host.", float64(s.Connections), "host", "service")
	gauge("connections", "Connections, by host.", float64(s.DHTConnections), "host", "dht")
	gauge("dht_records", "Records of the DHT that are kept here.", float64(s.Records))
	gauge("dht_servers", "Other servers in the table of the DHT.", float64(s.DHTServers))
	gauge("volunteers", "Other volunteers heard of lately.", float64(s.Volunteers))
	for why, n := range s.Refused {
		counter("refused_total", "Requests that were refused, by reason.", n, "part", "volunteer", "reason", why)
	}
	m := s.Mailbox
	if m == nil {
		return
	}
	for why, n := range m.Server.Refused {
		counter("refused_total", "Requests that were refused, by reason.", n, "part", "mailbox", "reason", why)
	}
	for why, n := range m.Refused {
		counter("refused_total", "Requests that were refused, by reason.", n, "part", "queue", "reason", why)
	}
	for name, p := range map[string]pool{"open": m.Open, "vouched": m.Vouched} {
		gauge("mailbox_boxes", "Boxes, by pool.", float64(p.Boxes), "pool", name)
		gauge("mailbox_bytes", "Bytes that count against the quota, by pool.", float64(p.Bytes), "pool", name)
		gauge("mailbox_limit_bytes", "What a pool may hold.", float64(p.Limit), "pool", name)
	}
	gauge("mailbox_quota_bytes", "The quota in all.", float64(m.Ceiling))
	gauge("mailbox_messages", "Envelopes that wait.", float64(m.Waiting))
	gauge("mailbox_oldest_days", "Age of the oldest envelope that waits.", float64(m.OldestDays))
	gauge("mailbox_unaccounted_bytes", "What the boxes hold less what is accounted; must be 0.", float64(m.Unaccounted))
	gauge("mailbox_damage", "How often damage was found since the start.", float64(m.Damaged))
	gauge("mailbox_draining", "1 while it drains.", oneIf(!m.DrainUntil.IsZero()))
	gauge("mailbox_pending_writes", "Requests that wait for their commit.", float64(m.Pending))
	gauge("mailbox_streams", "Streams that are open.", float64(m.Server.Streams))
	gauge("mailbox_owners_waiting", "Owners who wait for mail.", float64(m.Server.Waiting))
	gauge("mailbox_commit_seconds", "How long the newest commits took.", m.CommitP50/1000, "quantile", "0.5")
	gauge("mailbox_commit_seconds", "How long the newest commits took.", m.CommitP99/1000, "quantile", "0.99")
	gauge("mailbox_database_bytes", "Bytes of the database's tables.", float64(m.Tables))
	gauge("mailbox_garbage_bytes", "Bytes of envelopes that are gone and still take room.", float64(m.Garbage))
	gauge("disk_free_bytes", "What is free of the disk.", float64(m.Free))
	counter("mailbox_accepted_total", "Envelopes taken since the start.", m.Accepted)
	counter("mailbox_handed_out_total", "Envelopes handed out since the start.", m.Fetched)
	counter("mailbox_acknowledged_total", "Envelopes that their owners acknowledged since the start.", m.Acked)
	counter("mailbox_expired_total", "Envelopes whose day ended since the start.", m.Expired)
	counter("mailbox_commits_total", "Commits since the start.", m.Commits)
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
