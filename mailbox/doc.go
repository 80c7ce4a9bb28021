// Package mailbox keeps sealed envelopes for people who are away, and speaks /sotto/mailbox/1 on both ends (PROTOCOL 17).
//
// The Queue is what a volunteer's disk holds: boxes, the envelopes that wait in them, the hashes of tokens that may be spent, records to
// republish. Begin with queue.go, then commit.go (how a deposit becomes durable, by one loop), rows.go (what lies on disk), deposit.go and
// fetch.go (an envelope's way in and out), retention.go (the only ways by which anything is deleted), engine.go and damage.go (what a start
// believes of the disk).
//
// The Server speaks the protocol in front of it: server.go, stream.go (one stream's requests and answers, in order), owner.go (what an owner may
// ask), admission.go (what a stranger may cost). The Client is the other end: client.go, box.go for an owner, pipe.go (a stream that is kept).
package mailbox
