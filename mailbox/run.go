package mailbox

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// Run serves a queue until ctx ends or one of the two fails: first the server stops, then the queue, which then has nothing left to commit.
func Run(ctx context.Context, q *Queue, s *Server) error {
	queue, stopQueue := context.WithCancel(context.WithoutCancel(ctx))
	defer stopQueue()
	server, stopServer := context.WithCancel(ctx)
	defer stopServer()
	var both errgroup.Group
	both.Go(func() error {
		defer stopServer()
		return q.Run(queue)
	})
	both.Go(func() error {
		defer stopQueue()
		return s.Run(server)
	})
	return both.Wait()
}
