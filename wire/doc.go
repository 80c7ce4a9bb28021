// Package wire is what crosses the network: ids, frames, offers and answers, knocks, reach and the content of a message,
// with their limits. It knows no keys and no sockets. Begin with frame.go, then content.go for what people see.
package wire
