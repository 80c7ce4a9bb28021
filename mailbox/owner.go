package mailbox

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"sotto/identity"
	"sotto/internal/canon"
	"sotto/record"
	"sotto/wire"
)

// do is everything but a deposit, in its turn. done is called once the answer was written, or could not be.
func (s *Server) do(ctx context.Context, l *talk, q wire.MailboxRequest) (a wire.MailboxAnswer, done func()) {
	if q.Op().ForOwner() && !l.auth {
		s.counts.add(refusedOwner)
		return wire.MailboxAnswer{Code: wire.CodeRefused}, nil
	}
	switch q := q.(type) {
	case *wire.TermsRequest:
		return wire.MailboxAnswer{Result: s.signTerms()}, nil
	case *wire.Auth:
		return s.authenticate(l, q), nil
	case *wire.Admission:
		return s.register(l, q), nil
	case *wire.StandingRequest:
		standing, err := s.queue.Standing(l.box)
		return s.result(q, standing.Marshal(), err), nil
	case *wire.PoolChange:
		unspent, err := s.queue.Pool(l.box, q.Add, q.Drop)
		return s.result(q, binary.BigEndian.AppendUint32(nil, unspent), err), nil
	case *wire.Fetch:
		return s.fetch(l, q.After, int(q.Max))
	case *wire.Wait:
		return s.wait(ctx, l, q)
	case *wire.AckMail:
		removed, err := s.queue.Ack(ctx, l.box, q.IDs)
		return s.result(q, binary.BigEndian.AppendUint16(nil, uint16(removed)), err), nil
	case *wire.RepublishList:
		return s.keepRecords(ctx, l, q), nil
	case *wire.CloseBox:
		return s.result(q, nil, s.queue.CloseBox(ctx, l.box)), nil
	case *wire.Prove:
		return s.prove(l, q), nil
	case *wire.Strangers:
		err := s.queue.SetStrangers(l.box, q.Open)
		return s.result(q, []byte{s.cfg.Terms.StrangerBits}, err), nil
	}
	s.counts.add(refusedOp)
	return wire.MailboxAnswer{Code: wire.CodeRefused}, nil
}

func (s *Server) result(q wire.MailboxRequest, result []byte, err error) wire.MailboxAnswer {
	if err != nil {
		return s.failed(q.Op(), err)
	}
	return wire.MailboxAnswer{Result: result}
}

// authenticate names the stream's box. The signature is over both keys of this connection, so it serves on no other (PROTOCOL 17.3).
func (s *Server) authenticate(l *talk, q *wire.Auth) wire.MailboxAnswer {
	if wait, ok := s.gate.work(l.from, s.clock.Now()); !ok {
		return s.busy(refusedWork, wait)
	}
	if l.auth || identity.CheckKey(q.Key) != nil || !canon.Verify(ed25519.PublicKey(q.Key[:]), wire.SigOwner, wire.OwnerFields(s.key, l.front), q.Signature[:]) {
		s.counts.add(refusedAuth)
		return wire.MailboxAnswer{Code: wire.CodeRefused}
	}
	l.auth, l.key, l.box = true, q.Key, wire.NewBoxID(s.key, q.Key)
	return wire.MailboxAnswer{Result: l.box[:]}
}

// register makes a box for whoever the mode admits.
func (s *Server) register(l *talk, q *wire.Admission) wire.MailboxAnswer {
	standing, err := s.queue.Standing(l.box)
	if !errors.Is(err, wire.ErrNotFound) {
		return s.result(q, standing.Marshal(), err)
	}
	now := s.clock.Now()
	if wait, ok := s.gate.work(l.from, now); !ok {
		return s.busy(refusedWork, wait)
	}
	how, ok := s.admit(l, q)
	switch {
	case s.queue.drainUntil() != 0 || !ok:
		s.counts.add(refusedRegister)
		return wire.MailboxAnswer{Code: wire.CodeRefused}
	case s.load.overloaded(now):
		return s.busy(refusedLoad, s.limits.SlowCommit*20)
	}
	standing, err = s.queue.Register(l.box, how)
	return s.result(q, standing.Marshal(), err)
}

// admit says by what right a box is made, if by any (PROTOCOL 17.3).
func (s *Server) admit(l *talk, q *wire.Admission) (how Admit, ok bool) {
	mode := s.cfg.Terms.Mode.Meaning()
	if q.Succeeds() {
		old := wire.NewBoxID(s.key, q.OldKey)
		if canon.Verify(ed25519.PublicKey(q.OldKey[:]), wire.SigSuccessor, wire.SuccessorFields(s.key, l.key), q.OldSignature[:]) {
			if _, err := s.queue.Standing(old); err == nil {
				return Admit{Old: old}, true
			}
		}
	}
	switch {
	case mode == wire.ModeClosed:
		return how, false
	case len(q.Voucher) > 0 && mode != wire.ModeAllowlist:
		return Admit{Voucher: q.Voucher}, true // the queue knows whether it is good, and spends it with the box's making
	case mode == wire.ModeAllowlist:
		return Admit{Vouched: true}, s.queue.Allowed(sha256.Sum256(l.key[:]))
	case mode == wire.ModeOpen:
		return how, s.thisHour(q.Hour) && wire.RegisterFits(s.key, l.key, q.Hour, q.Nonce, s.cfg.Terms.RegisterBits)
	}
	return how, false
}

// fetch reads a page. When too many large ones are being written it is of one envelope: owners are always served.
func (s *Server) fetch(l *talk, after uint64, most int) (wire.MailboxAnswer, func()) {
	done := func() {}
	if most != 1 {
		if s.pageSlot(l) {
			done = func() { s.pageFree(l) }
		} else {
			most = 1
		}
	}
	page, err := s.queue.Fetch(l.box, after, most)
	if err != nil || len(page.Mail) == 0 {
		done()
		return s.result(&wire.Fetch{}, page.Marshal(), err), nil
	}
	return wire.MailboxAnswer{Result: page.Marshal()}, done
}

func (s *Server) pageSlot(l *talk) bool {
	if !s.gate.page(l.from) {
		return false
	}
	select {
	case s.pages <- struct{}{}:
		return true
	default:
		s.gate.pageDone(l.from)
		return false
	}
}

func (s *Server) pageFree(l *talk) {
	<-s.pages
	s.gate.pageDone(l.from)
}

// wait answers as soon as there is mail, or when the time is over, or something stands behind the WAIT (PROTOCOL 17.5).
func (s *Server) wait(ctx context.Context, l *talk, q *wire.Wait) (wire.MailboxAnswer, func()) {
	news, stop := s.queue.Watch(l.box) // before the first look, so that nothing comes between
	defer stop()
	if a, done := s.fetch(l, q.After, int(q.Max)); done != nil || a.Code != wire.CodeOK || l.followed() {
		return a, done
	}
	s.seat(l)
	defer s.unseat(l)
	end := time.NewTimer(time.Duration(min(q.Seconds, wire.MaxWaitSeconds)) * time.Second)
	defer end.Stop()
	for {
		over := false
		select {
		case <-news:
		case <-l.more:
			if over = l.followed(); !over {
				continue // of a frame that this WAIT came in
			}
		case <-end.C:
			over = true
		case <-l.kick:
			over = true
		case <-ctx.Done():
			return wire.MailboxAnswer{Code: wire.CodeLater}, nil
		}
		if a, done := s.fetch(l, q.After, int(q.Max)); over || done != nil || a.Code != wire.CodeOK {
			return a, done
		}
	}
}

// seat notes a stream that waits; one more than a box may have ends the oldest, which a restarted owner left behind.
func (s *Server) seat(l *talk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.waits[l.box]
	if len(list) >= s.limits.WaitsPerBox {
		s.counts.add(refusedWaits)
		close(list[0].kick)
		_ = list[0].s.Reset()
		list = list[1:]
	}
	l.seated = true
	s.waits[l.box] = append(slices.Clip(list), l)
}

func (s *Server) unseat(l *talk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.seated = false
	list := slices.DeleteFunc(slices.Clone(s.waits[l.box]), func(o *talk) bool { return o == l })
	if s.waits[l.box] = list; len(list) == 0 {
		delete(s.waits, l.box)
	}
}

// keepRecords checks what an owner wants put. A record for later is judged as of the time when it is to be put (PROTOCOL 17.7).
func (s *Server) keepRecords(ctx context.Context, l *talk, q *wire.RepublishList) wire.MailboxAnswer {
	if s.cfg.Put == nil {
		s.counts.add(refusedRecords)
		return wire.MailboxAnswer{Code: wire.CodeRefused}
	}
	now := s.clock.Now()
	var good []wire.Republish
	for _, r := range q.List {
		at := now
		if then := time.Unix(r.NotBefore, 0); then.After(now) {
			at = then
		}
		if len(r.Record) > 0 {
			if wait, ok := s.gate.work(l.from, now); !ok { // each costs a signature
				return s.busy(refusedWork, wait)
			}
			if at.Sub(now) > wire.MaxKeepDays*24*time.Hour || record.Validate(r.Name, r.Record, at) != nil {
				s.counts.add(refusedRecords)
				continue
			}
		}
		good = append(good, r)
	}
	kept, err := s.queue.Republish(ctx, l.box, good)
	return s.result(q, binary.BigEndian.AppendUint16(nil, uint16(kept)), err)
}
