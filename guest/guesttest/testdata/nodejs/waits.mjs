const { handler } = await Promise.resolve({ handler: () => 'awaited' }); export { handler };
