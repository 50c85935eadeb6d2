export const handler = () => 'pkg';
